import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmselfsup.models.utils import SelfSupDataPreprocessor
from torch import nn

from ccop_mm.evaluation import frozen_detector_features as features
from ccop_mm.evaluation import load_model
from ccop_mm.evaluation.frozen_detector_data import read_detection_images
from ccop_mm.evaluation.frozen_detector_features import (
    FrozenNetwork,
    cache_features,
    count_bytes,
    measure_statistics,
)
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.model import inference_mode

MEAN, STD = (110.0, 120, 130), (50.0, 60, 70)
NORMALIZE = dict(mean=list(MEAN), std=list(STD), bgr_to_rgb=True)
RESNET = dict(type='mmdet.ResNet', depth=18, base_channels=4, norm_eval=False, frozen_stages=-1)
FPN = dict(type='mmdet.FPN', in_channels=[4, 8, 16, 32], out_channels=6, num_outs=5)


class ColorModel(nn.Module):
    """Model whose stages are the input averaged over cells, with a fourth, constant channel."""

    def __init__(self, preprocessor=None, strides=(4, 8, 16, 32)):
        super().__init__()
        self.data_preprocessor = preprocessor or SelfSupDataPreprocessor(**NORMALIZE)
        self.norm = nn.BatchNorm2d(3)
        self.strides, self.shapes, self.modes = strides, [], []

    def backbone(self, x):
        self.shapes.append(tuple(x.shape))
        self.modes.append((self.training, torch.is_grad_enabled()))
        x = torch.cat([x, torch.full_like(x[:, :1], 7)], dim=1)
        return tuple(F.avg_pool2d(x, stride) for stride in self.strides)


def write_images(folder, shapes, seed=0):
    rng = np.random.default_rng(seed)
    entries, annotations = [], []
    for number, (height, width) in enumerate(shapes):
        cv2.imwrite(str(folder / f'{number}.png'), rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        entries.append(dict(id=number, file_name=f'{number}.png', height=height, width=width))
        annotations.append(dict(image_id=number, category_id=1, bbox=[2, 2, width - 4, height - 4]))
    path = folder / 'instances.json'
    path.write_text(json.dumps(dict(images=entries, annotations=annotations, categories=[])))
    return read_detection_images(path, folder)


def level_values(network):
    return [(level.name, level.index, level.stride, level.channels) for level in network.levels]


def ccop_config():
    return Config(
        dict(
            model=dict(
                type='CCOP',
                backbone=RESNET,
                neck=FPN,
                image_projector=dict(type='ProjectionMLP', in_channels=32, hid_channels=8, out_channels=8),
                object_projector=dict(type='ProjectionMLP', in_channels=294, hid_channels=8, out_channels=8),
                queue_len=16,
                feat_dim=8,
                data_preprocessor=NORMALIZE,
            )
        )
    )


def test_levels_of_ccop():
    model = load_model(ccop_config())
    with inference_mode(model):
        assert level_values(FrozenNetwork(model)) == [('C3', 1, 8, 8), ('C4', 2, 16, 16), ('C5', 3, 32, 32)]
        neck = FrozenNetwork(model, 'neck')
        assert level_values(neck) == [('P3', 1, 8, 6), ('P4', 2, 16, 6), ('P5', 3, 32, 6)]
        assert [level.name for level in FrozenNetwork(model, strides=(4, 32)).levels] == ['C2', 'C5']
        image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        maps = model.neck(model.backbone(neck.preprocess(image)[None]))
        for computed, expected in zip(neck([image]), maps[1:4], strict=True):
            torch.testing.assert_close(computed, expected)


def test_levels_of_moco_whose_backbone_returns_the_last_stage():
    model = dict(
        type='MoCo',
        data_preprocessor=dict(type='SelfSupDataPreprocessor', **NORMALIZE),
        backbone=dict(RESNET, out_indices=(3,)),
        neck=dict(type='MoCoV2Neck', in_channels=32, hid_channels=8, out_channels=8, with_avg_pool=True),
        head=dict(type='ContrastiveHead', loss=dict(type='mmcls.CrossEntropyLoss'), temperature=0.2),
        queue_len=16,
        feat_dim=8,
    )
    model = load_model(Config(dict(model=model)))
    with inference_mode(model):
        assert [level.name for level in FrozenNetwork(model).levels] == ['C3', 'C4', 'C5']
        with pytest.raises(InputError, match='the neck of MoCo'):
            FrozenNetwork(model, 'neck')


def test_levels_of_a_detector_with_another_backbone():
    cspnext = dict(type='mmdet.CSPNeXt', deepen_factor=0.167, widen_factor=0.125, norm_cfg=dict(type='BN'))
    model = dict(
        type='mmdet.RTMDet',
        data_preprocessor=dict(type='mmdet.DetDataPreprocessor', mean=list(MEAN), std=list(STD), pad_size_divisor=64),
        backbone=cspnext,
        neck=dict(
            type='mmdet.CSPNeXtPAFPN',
            in_channels=[32, 64, 128],
            out_channels=16,
            num_csp_blocks=1,
            norm_cfg=dict(type='BN'),
        ),
        bbox_head=dict(
            type='mmdet.RTMDetHead',
            num_classes=2,
            in_channels=16,
            feat_channels=32,
            anchor_generator=dict(type='mmdet.MlvlPointGenerator', offset=0, strides=[8, 16, 32]),
            bbox_coder=dict(type='mmdet.DistancePointBBoxCoder'),
            loss_cls=dict(type='mmdet.QualityFocalLoss', use_sigmoid=True),
            loss_bbox=dict(type='mmdet.GIoULoss'),
        ),
    )
    model = load_model(Config(dict(model=model, default_scope='mmdet')))
    with inference_mode(model):
        for source, channels in (('backbone', (32, 64, 128)), ('neck', (16, 16, 16))):
            network = FrozenNetwork(model, source)
            assert [level.channels for level in network.levels] == list(channels)
            shapes = [tuple(part.shape[2:]) for part in network([np.zeros((70, 90, 3), np.uint8)])]
            assert shapes == [(12, 12), (6, 6), (3, 3)]  # 96 x 96, although the preprocessor pads to 128 x 128


@pytest.mark.parametrize('strides, asked, value', [((4, 64), (8, 16), '4, 64'), ((3,), (8,), '3.01')])
def test_without_suitable_levels(strides, asked, value):
    with pytest.raises(InputError, match=f'stride {value}'):
        FrozenNetwork(ColorModel(strides=strides).eval(), strides=asked)


def test_two_levels_of_one_stride():
    model = ColorModel().eval()
    model.neck = lambda maps: [maps[2], maps[2]]
    with pytest.raises(InputError, match='stride 16, 16'):
        FrozenNetwork(model, 'neck')


def test_models_that_cannot_be_used():
    with pytest.raises(InputError, match='ColorModel has no neck'):
        FrozenNetwork(ColorModel().eval(), 'neck')
    with pytest.raises(InputError, match="'head'"):
        FrozenNetwork(ColorModel().eval(), 'head')
    model = ColorModel().eval()
    model.backbone = lambda x: [1 / 0]
    with pytest.raises(InputError, match='ZeroDivisionError'):
        FrozenNetwork(model)


@pytest.mark.parametrize('bgr_to_rgb', [True, False])
@pytest.mark.parametrize('kind', ['SelfSupDataPreprocessor', 'TwoViewDataPreprocessor', 'mmdet.DetDataPreprocessor'])
def test_input_is_that_of_the_data_preprocessor(kind, bgr_to_rgb):
    from mmselfsup.registry import MODELS

    settings = dict(NORMALIZE, bgr_to_rgb=bgr_to_rgb)
    pad = 0 if kind == 'SelfSupDataPreprocessor' else 9
    if pad:
        settings.update(pad_size_divisor=32, pad_value=pad)
    network = FrozenNetwork(ColorModel(MODELS.build(dict(type=kind, **settings))).eval())
    image = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    colors = image[..., ::-1] if bgr_to_rgb else image
    expected = torch.full((3, 64, 96), float(pad))
    expected[:, :40, :70] = torch.from_numpy((colors - np.array(MEAN)) / np.array(STD)).permute(2, 0, 1)
    torch.testing.assert_close(network.preprocess(image), expected, atol=1e-5, rtol=0)
    mirrored = network.preprocess(image[:, ::-1])
    torch.testing.assert_close(mirrored[:, :40, :70], expected[:, :40, :70].flip(2), atol=1e-5, rtol=0)


def test_network_without_normalization_receives_0_to_255():
    preprocessor = ROOT_MODELS.build(dict(type='mmengine.ImgDataPreprocessor'))
    network = FrozenNetwork(ColorModel(preprocessor).eval())
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    torch.testing.assert_close(network.preprocess(image), torch.from_numpy(image).permute(2, 0, 1).float())


def test_features_are_standardized_and_stored_in_half_precision(tmp_path, monkeypatch):
    images = write_images(tmp_path, [(64, 96), (96, 64), (64, 96), (64, 100), (40, 40)])
    network = FrozenNetwork(ColorModel().eval())
    statistics = measure_statistics(network, images, 64)
    caches = [cache_features(network, images, 64, statistics, flip, batch) for flip, batch in ((True, 2), (False, 1))]
    for cache in caches:
        assert sorted(image.image_id for image in cache.images) == [0, 1, 2, 3, 4]
        assert {part.dtype for bucket in cache.buckets for part in bucket.maps} == {torch.float16}
    assert count_bytes(network, images, 64, flip=True) == caches[0].num_bytes == 2 * caches[1].num_bytes

    # An independent computation for each image: cell means of the normalized pixels.
    by_level = [[], [], []]
    for cache, flip in ((caches[0], True), (caches[0], False), (caches[1], False)):
        for bucket in cache.buckets:
            for row, image in enumerate(bucket.images):
                pixels = image.load(64)[..., ::-1]
                pixels = pixels[:, ::-1] if flip else pixels
                pixels = (pixels.astype(np.float64) - MEAN) / STD
                height, width = pixels.shape[:2]
                padded = np.zeros((-(-height // 32) * 32, -(-width // 32) * 32, 3))
                padded[:height, :width] = pixels
                for level, (stride, part) in enumerate(zip((8, 16, 32), bucket.maps, strict=True)):
                    cells = padded.reshape(len(padded) // stride, stride, -1, stride, 3).mean(axis=(1, 3))
                    mean, std = (value.numpy() for value in statistics[level])
                    assert mean[3] == 7 and std[3] == 1  # constant
                    expected = np.concatenate([(cells - mean[:3]) / std[:3], np.zeros((*cells.shape[:2], 1))], axis=2)
                    found = part[row, int(flip)].permute(1, 2, 0).float().numpy()
                    np.testing.assert_allclose(found, expected, atol=4e-3)
                    if cache is caches[1]:
                        rows, columns = -(-height // stride), -(-width // stride)
                        by_level[level].append(cells[:rows, :columns].reshape(-1, 3))
    for cells, (mean, std) in zip(by_level, statistics, strict=True):  # without the cells of the padding
        np.testing.assert_allclose(mean[:3], np.concatenate(cells).mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(std[:3], np.concatenate(cells).std(axis=0), rtol=1e-4)


def test_statistics_use_images_from_the_whole_dataset(tmp_path, monkeypatch):
    images = write_images(tmp_path, [(32, 32)] * 9)
    loaded = []
    monkeypatch.setattr(features, 'NUM_STATISTICS_IMAGES', 3)
    monkeypatch.setattr(
        type(images[0]), 'load', lambda self, size: loaded.append(self.image_id) or np.zeros((32, 32, 3), np.uint8)
    )
    measure_statistics(FrozenNetwork(ColorModel().eval()), images, 32)
    assert loaded == [0, 4, 8]


def test_tiny_and_elongated_images(tmp_path):
    images = write_images(tmp_path, [(5, 7), (8, 400), (6, 6)])
    network = FrozenNetwork(ColorModel().eval())
    cache = cache_features(network, images, 64, measure_statistics(network, images, 64), flip=True)
    shapes = {image.image_id: tuple(bucket.maps[0].shape[3:]) for bucket in cache.buckets for image in bucket.images}
    assert shapes == {0: (8, 12), 1: (4, 16), 2: (8, 8)}
    assert all(part.isfinite().all() for bucket in cache.buckets for part in bucket.maps)


def test_unreadable_images_are_left_out(tmp_path):
    images = write_images(tmp_path, [(64, 96)] * 4)
    (tmp_path / '1.png').write_bytes(b'no image')
    network = FrozenNetwork(ColorModel().eval())
    statistics = measure_statistics(network, images, 64)
    cache = cache_features(network, images, 64, statistics, flip=True, batch_size=2)
    assert [image.image_id for image in cache.images] == [0, 2, 3]
    whole = cache_features(network, [images[number] for number in (0, 2, 3)], 64, statistics, flip=True)
    for part, expected in zip(cache.buckets[0].maps, whole.buckets[0].maps, strict=True):
        assert torch.equal(part, expected)
    for number in (0, 2, 3):
        (tmp_path / f'{number}.png').unlink()
    for function in (
        lambda: measure_statistics(network, images, 64),
        lambda: cache_features(network, images, 64, statistics),
    ):
        with pytest.raises(InputError, match='none of 4 images'):
            function()


def test_non_finite_features(tmp_path):
    images = write_images(tmp_path, [(64, 64)])
    model = ColorModel().eval()
    network = FrozenNetwork(model)
    statistics = measure_statistics(network, images, 64)
    model.data_preprocessor.std.zero_()
    model.data_preprocessor.mean.copy_(torch.full((3, 1, 1), torch.nan))
    for function in (
        lambda: measure_statistics(network, images, 64),
        lambda: cache_features(network, images, 64, statistics),
    ):
        with pytest.raises(InputError, match='C3 are non-finite'):
            function()
