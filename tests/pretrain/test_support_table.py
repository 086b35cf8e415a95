"""Each row of docs/support.md: a detector of mmdet, pre-trained for a step, saved, loaded and fine-tuned for a step.

``UPDATE_SUPPORT_TABLE=1 python -m pytest tests/pretrain/test_support_table.py`` writes the table.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from synthetic_images import make_scene

from ccop_mm.evaluation import load_model
from ccop_mm.pretrain.config_writer import ImageSource, format_finetuning, pretraining_settings
from ccop_mm.pretrain.detector_config import build_encoder, read_detector
from ccop_mm.pretrain.sizes import choose_sizes
from ccop_mm.proposals import generate_proposals, list_images
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.model import inference_mode
from ccop_mm.weights import convert

ROOT = Path(__file__).parents[2]
PAGE = ROOT / 'docs/support.md'
#: Real images, which are not part of the project; synthetic ones otherwise.
REAL_IMAGES = ROOT.parent / 'shared/data/coco_cc31/images'
VIEW, BATCH = 160, 2


@dataclass(frozen=True)
class Row:
    """A detector.

    Attributes:
        title (str): Name in the table.
        config (str): Its config.
        backbone (dict): Settings of the backbone that shrink it.
        side (int): Side of the images of the fine-tuning step in pixels.
    """

    title: str
    config: str
    backbone: dict = field(default_factory=dict)
    side: int = 160


ROWS = [
    Row('Faster R-CNN', 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'),
    Row('Mask R-CNN', 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'),
    Row('Mask R-CNN', 'mmdet::mask_rcnn/mask-rcnn_x101-32x4d_fpn_1x_coco.py', dict(depth=50)),
    Row('Mask R-CNN', 'mmdet::regnet/mask-rcnn_regnetx-3.2GF_fpn_1x_coco.py'),
    Row('Mask R-CNN', 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'),
    Row('Mask R-CNN', 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'),
    Row('Cascade R-CNN', 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py'),
    Row('Faster R-CNN', 'mmdet::res2net/faster-rcnn_res2net-101_fpn_2x_coco.py', dict(depth=50)),
    Row('Faster R-CNN', 'mmdet::hrnet/faster-rcnn_hrnetv2p-w18-1x_coco.py'),
    Row('Keypoint R-CNN', str(ROOT / 'configs/transfer/keypoint_rcnn/keypoint-rcnn_r50-fpn_random_2x_coco.py')),
    Row('RetinaNet', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'),
    Row('RetinaNet', 'mmdet::pvt/retinanet_pvt-t_fpn_1x_coco.py'),
    Row('FCOS', 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'),
    Row('ATSS', 'mmdet::atss/atss_r50_fpn_1x_coco.py'),
    Row('GFL', 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'),
    Row('RTMDet tiny', 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'),
    Row('RTMDet s', 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'),
    Row('YOLOX tiny', 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'),
    Row('YOLOv3', 'mmdet::yolo/yolov3_d53_8xb8-ms-608-273e_coco.py'),
    Row('Deformable DETR', 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'),
    Row('DINO', 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', side=256),  # 900 queries
]
REFUSED = {
    'SSD': 'mmdet::ssd/ssd300_coco.py',
    'CenterNet': 'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py',
    'DETR': 'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'YOLOF': 'mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py',
    'CornerNet': 'mmdet::cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py',
}


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A folder of a few images, with proposals."""
    folder = tmp_path_factory.mktemp('support')
    source = REAL_IMAGES if REAL_IMAGES.is_dir() else folder / 'images'
    if source != REAL_IMAGES:
        source.mkdir()
        for seed in range(8):
            cv2.imwrite(str(source / f'{seed}.png'), make_scene(seed, 200, 240))
    names = sorted(path.name for path in source.iterdir())[:8]
    (folder / 'list.txt').write_text('\n'.join(names))
    generate_proposals(
        list_images(str(folder / 'list.txt'), source), folder / 'proposals.npz', workers=1, progress=False
    )
    return source, folder


def pretrain_one_step(detector, images, tmp_path):
    """Builds the model and the loader of the written config, trains one step, and saves a checkpoint."""
    source, folder = images
    _, layout = build_encoder(detector)
    sizes = choose_sizes(8, 20.0, BATCH, None, continued=False, batch_norm=True)
    settings = pretraining_settings(
        detector, layout, sizes, VIEW, ImageSource(str(source), str(folder / 'list.txt')), None, 0, False
    )
    settings['train_dataloader']['dataset']['proposal_file'] = str(folder / 'proposals.npz')
    for name in ('image_projector', 'object_projector'):  # narrow: most of the time would be theirs
        settings['model'][name]['hid_channels'] = 32
    cfg = Config(settings)
    model = load_model(cfg, seed=0).train()
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.01)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    total = sum(value for name, value in losses.items() if name.startswith('loss'))
    assert torch.isfinite(total) and losses['objects_per_image'] > 0
    total.backward()
    optimizer.step()
    trained = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.partition('.')[0] for name in trained} >= {'backbone', 'neck', 'image_projector', 'object_projector'}
    checkpoint = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=1, iter=1)), checkpoint)
    return model, layout, checkpoint


def load_detector(detector, folder):
    """Builds the detector of the written fine-tuning config, as a run does; the weights are beside the config."""
    config = folder / 'finetune.py'
    config.write_text(format_finetuning(detector))
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
        model.init_weights()
    return model


def detector_inputs(detector, side):
    """Two images with two objects, in the form of mmdet's data loader."""
    rng, samples = np.random.default_rng(0), []
    for _ in range(2):
        gt = InstanceData(
            bboxes=torch.tensor([[8.0, 12, 70, 90], [60, 50, 150, 150]]),
            labels=torch.tensor([0, 1]),
            keypoints=torch.from_numpy(rng.random((2, 17, 2), dtype=np.float32)) * 50 + 20,
            keypoints_visible=torch.ones(2, 17),
        )
        if detector.with_mask:
            gt.masks = BitmapMasks(rng.integers(0, 2, (2, side, side), dtype=np.uint8), side, side)
        shape = (side, side)
        sample = DetDataSample(
            gt_instances=gt,
            ignored_instances=InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)),
            metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0), flip=False),
        )
        samples.append(sample)
    pixels = [torch.from_numpy(rng.integers(0, 256, (3, side, side), dtype=np.uint8)) for _ in samples]
    return detector.data_preprocessor(dict(inputs=pixels, data_samples=samples), training=False)


def finetune_one_step(detector, side):
    """Checks that one step gives a finite loss and changes the backbone."""
    detector.train()
    data = detector_inputs(detector, side)
    losses = detector.loss(data['inputs'], data['data_samples'])
    parts = [value for name, value in losses.items() if 'loss' in name]
    total = sum(sum(part) if isinstance(part, (list, tuple)) else part for part in parts)
    assert torch.isfinite(total)
    total.backward()
    parameters = [value for value in detector.backbone.parameters() if value.grad is not None]
    before = [value.detach().clone() for value in parameters]
    torch.optim.SGD(detector.parameters(), lr=0.001).step()
    assert any(not torch.equal(*pair) for pair in zip(parameters, before, strict=True))


def compare_features(model, detector):
    """Checks that the same image file content gives the same inputs and the same maps in evaluation mode."""
    pixels = torch.randint(0, 256, (1, 3, 160, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (pretrained,) = model.data_preprocessor(dict(inputs=[pixels]))['inputs']
    sample = DetDataSample(metainfo=dict(img_shape=(160, 160)))
    finetuned = detector.data_preprocessor(dict(inputs=list(pixels), data_samples=[sample]))['inputs']
    assert torch.equal(pretrained, finetuned)
    with inference_mode(model), inference_mode(detector):
        expected = model.neck(tuple(model.backbone(pretrained)))
        actual = detector.neck(tuple(detector.backbone(finetuned)))
        for index in model.level_projector.indices:
            torch.testing.assert_close(actual[index], expected[index], rtol=1e-5, atol=1e-5)


def format_row(row, detector, model, layout):
    """Formats a row of the table."""
    strides = [round(1 / layer.spatial_scale) for layer in model.object_pool.layers]
    pooled = ', '.join(map(str, strides))
    if model.level_projector.convs:
        channels = ', '.join(map(str, layout.level_channels(strides)))
        pooled += f' ({channels} channels, projected)'
    modules = sorted({re.sub(r'\.(conv|norm|bn|gn)?\.?(weight|bias)$', '', name) for name in model.untrained})
    classes = detector.title.partition(' with ')[2]
    backbone, _, neck = classes.partition(' and ')
    config = row.config.removeprefix(f'{ROOT}/configs/')
    shrunk = ', '.join(f'backbone.{key}={value}' for key, value in row.backbone.items())
    cells = [row.title, backbone, neck, f'`{config}`' + (f' with `{shrunk}`' if shrunk else ''), pooled]
    return f'| {" | ".join(cells)} | {", ".join(f"`{name}`" for name in modules) or "-"} |'


def check_page(line):
    """Checks that the page contains a line, or adds it to its table if UPDATE_SUPPORT_TABLE is set."""
    lines = PAGE.read_text().splitlines()
    if os.environ.get('UPDATE_SUPPORT_TABLE') and line not in lines:
        config = re.search('`[^`]*`', line)[0]
        lines = [old for old in lines if f'| {config}' not in old]
        table = [
            number for number, old in enumerate(lines) if old.startswith('|') and old.count('|') == line.count('|')
        ]
        PAGE.write_text('\n'.join([*lines[: table[-1] + 1], line, *lines[table[-1] + 1 :]]) + '\n')
        return
    assert line in lines


@pytest.mark.slow
@pytest.mark.parametrize('row', ROWS, ids=lambda row: Path(row.config.rpartition(':')[2]).stem)
def test_detector(row, images, tmp_path):
    config = row.config
    if row.backbone:
        config = str(tmp_path / 'detector.py')
        Path(config).write_text(f'_base_ = [{row.config!r}]\nmodel = dict(backbone={row.backbone!r})\n')
    detector = read_detector(config)
    model, layout, checkpoint = pretrain_one_step(detector, images, tmp_path)
    convert(checkpoint, 'ccop', tmp_path / 'weights.pth')
    finetuned = load_detector(detector, tmp_path)
    compare_features(model, finetuned)
    finetune_one_step(finetuned, row.side)
    check_page(format_row(row, detector, model, layout))


@pytest.mark.parametrize('title', REFUSED)
def test_refused_detector(title):
    with pytest.raises(InputError) as caught:
        build_encoder(read_detector(REFUSED[title]))
    assert '\n' not in str(caught.value)
    reason = str(caught.value).removeprefix(f'{REFUSED[title]}: ').partition(':')[0]  # without torch's own message
    check_page(f'| {title} | `{REFUSED[title]}` | {reason} |')
