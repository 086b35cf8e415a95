"""Reading of detectors: mmdet's own config files, and configs that are refused."""

import importlib.util
from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmdet.registry import MODELS as DETECTION_MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmselfsup.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ccop_mm.pretrain import detector_file
from ccop_mm.pretrain.detector_config import build_encoder, check_view, read_detector
from ccop_mm.pretrain.detector_file import locate_config
from ccop_mm.utils.errors import InputError

MMDET_CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
RGB = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0])
RESNET = ['frozen_stages', 'norm_eval', 'zero_init_residual']
FROZEN_BN = ['norm_cfg.requires_grad', *RESNET]
P2_TO_P6, P3_TO_P7 = (4, 8, 16, 32, 64), (8, 16, 32, 64, 128)

#: Config: class of the backbone, of the neck, changed settings of the backbone, data preprocessor, strides.
DETECTORS = {
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco': ('ResNet', 'FPN', RESNET, {**RGB, 'pad_size_divisor': 32}, P2_TO_P6),
    'mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco': (
        *('ResNet', 'FPN', FROZEN_BN),
        *({**CAFFE, 'pad_size_divisor': 32}, P2_TO_P6),
    ),
    'cascade_rcnn/cascade-rcnn_x101-32x4d_fpn_1x_coco': (
        *('ResNeXt', 'FPN', RESNET),
        *({**RGB, 'pad_size_divisor': 32}, P2_TO_P6),
    ),
    'retinanet/retinanet_r50_fpn_1x_coco': ('ResNet', 'FPN', RESNET, {**RGB, 'pad_size_divisor': 32}, P3_TO_P7),
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco': (
        *('ResNet', 'FPN', FROZEN_BN),
        *(dict(mean=[102.9801, 115.9465, 122.7717], std=[1.0, 1.0, 1.0], pad_size_divisor=32), P3_TO_P7),
    ),
    'atss/atss_r50_fpn_1x_coco': ('ResNet', 'FPN', RESNET, {**RGB, 'pad_size_divisor': 32}, P3_TO_P7),
    'gfl/gfl_r50_fpn_1x_coco': ('ResNet', 'FPN', RESNET, {**RGB, 'pad_size_divisor': 32}, P3_TO_P7),
    'rtmdet/rtmdet_tiny_8xb32-300e_coco': (
        *('CSPNeXt', 'CSPNeXtPAFPN', []),
        *(dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395]), (8, 16, 32)),
    ),
    'rtmdet/rtmdet_s_8xb32-300e_coco': (
        *('CSPNeXt', 'CSPNeXtPAFPN', []),
        *(dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395]), (8, 16, 32)),
    ),
    'yolox/yolox_tiny_8xb8-300e_coco': ('CSPDarknet', 'YOLOXPAFPN', [], dict(pad_size_divisor=32), (8, 16, 32)),
    'yolo/yolov3_d53_8xb8-ms-608-273e_coco': (
        *('Darknet', 'YOLOV3Neck', ['norm_eval']),
        *(dict(mean=[0, 0, 0], std=[255.0, 255.0, 255.0], bgr_to_rgb=True, pad_size_divisor=32), (32, 16, 8)),
    ),
    'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco': (
        *('SwinTransformer', 'FPN', []),
        *({**RGB, 'pad_size_divisor': 32}, P2_TO_P6),
    ),
    'pvt/retinanet_pvt-t_fpn_1x_coco': (
        *('PyramidVisionTransformer', 'FPN', []),
        *({**RGB, 'pad_size_divisor': 32}, P3_TO_P7),
    ),
    'convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco': (
        *('ConvNeXt', 'FPN', []),
        *({**RGB, 'pad_size_divisor': 32}, P2_TO_P6),
    ),
    'hrnet/faster-rcnn_hrnetv2p-w18-1x_coco': (
        *('HRNet', 'HRFPN', ['norm_eval']),
        *({**RGB, 'pad_size_divisor': 32}, P2_TO_P6),
    ),
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco': ('ResNet', 'ChannelMapper', FROZEN_BN, RGB, (8, 16, 32, 64)),
    'dino/dino-4scale_r50_8xb2-12e_coco': ('ResNet', 'ChannelMapper', FROZEN_BN, RGB, (8, 16, 32, 64)),
    'efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco': (
        *('EfficientNet', 'FPN', []),
        *({**RGB, 'pad_size_divisor': 32}, P3_TO_P7),
    ),
    'dyhead/atss_r50_fpn_dyhead_1x_coco': (
        *('ResNet', 'FPN + DyHead', RESNET),
        *({**RGB, 'pad_size_divisor': 32}, P3_TO_P7),
    ),
}

#: Config of a detector that needs neither mmdet's files nor much time.
SMALL = """
default_scope = 'mmdet'
model = dict(
    type='FCOS',
    data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
    backbone=dict(type='ResNet', depth=18, base_channels=8),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4),
)
"""


def write(tmp_path, text, name='detector.py'):
    path = tmp_path / name
    path.write_text(text)
    return path


def small(tmp_path, **changes):
    """Writes the small config with settings changed as on a command line."""
    path = write(tmp_path, SMALL)
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(changes)
    path.write_text(cfg.pretty_text)
    return path


@pytest.mark.parametrize('name', DETECTORS)
def test_mmdet_detectors_are_read(name):
    backbone, neck, changes, preprocessor, _ = DETECTORS[name]
    detector = read_detector(f'mmdet::{name}.py')
    assert detector.reference == f'mmdet::{name}.py'
    assert detector.title.endswith(f' with {backbone} and {neck}')
    assert [change.path.removeprefix('backbone.') for change in detector.changes] == changes
    assert detector.data_preprocessor == preprocessor
    whole = repr([detector.backbone, detector.neck])
    assert 'checkpoint' not in whole and 'pretrained' not in whole
    own = Config.fromfile(MMDET_CONFIGS / f'{name}.py', import_custom_modules=False).model.backbone
    assert detector.checkpoint == (own.get('init_cfg') or {}).get('checkpoint')
    # Apart from the changes and the weights, the backbone is the detector's.
    for key, value in own.items():
        if key not in ('type', 'init_cfg', *changes) and f'{key}.requires_grad' not in changes:
            assert detector.backbone[key] == value, key


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in DETECTORS if 'x101' not in name and 'dyhead' not in name])
def test_mmdet_detectors_are_built_and_train_completely(name):
    detector = read_detector(f'mmdet::{name}.py')
    encoder, layout = build_encoder(detector)
    assert layout.strides == DETECTORS[name][-1]
    check_view(encoder, 128)
    encoder.train()
    assert [key for key, value in encoder.named_parameters() if not value.requires_grad] == []
    norms = [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
    assert all(module.training for module in norms)


def test_types_are_found_in_the_scope_of_pretraining(tmp_path):
    """A name of mmdet is not taken for one of mmselfsup, which has a ResNet, too."""
    plugin = dict(cfg=dict(type='DropBlock', drop_prob=0.1, block_size=3), position='after_conv1')
    path = small(tmp_path, **{'model.backbone.plugins': [plugin], 'model.backbone.depth': 50})
    detector = read_detector(path)
    assert detector.backbone['type'] == 'mmdet.ResNet'
    assert detector.backbone['plugins'][0]['cfg']['type'] == 'mmdet.DropBlock'
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        assert type(MODELS.build(detector.backbone)).__module__.startswith('mmdet.')
    assert detector.neck == dict(type='mmdet.FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4)


def test_weights_inside_a_neck_are_removed():
    """The neck of DetectoRS contains a second backbone with weights and frozen stages of its own."""
    detector = read_detector('mmdet::detectors/detectors_cascade-rcnn_r50_1x_coco.py')
    inner = detector.neck['rfp_backbone']
    assert 'pretrained' not in inner and 'init_cfg' not in inner
    assert (inner['frozen_stages'], inner['norm_eval']) == (-1, False)
    assert 'neck.rfp_backbone.norm_eval' in [change.path for change in detector.changes]


def test_random_initialization_is_kept():
    detector = read_detector('mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py')
    assert detector.backbone['init_cfg'] == dict(type='TruncNormal', layer='Conv2d', std=0.03)
    assert detector.overrides == {}


def test_preprocessor_of_the_config_or_of_the_model(tmp_path):
    text = (
        SMALL.replace("dict(type='DetDataPreprocessor', pad_size_divisor=32)", 'None').replace(
            '    data_preprocessor=None,\n', ''
        )
        + "data_preprocessor = dict(type='DetDataPreprocessor', rgb_to_bgr=True, batch_augments=[dict(type='X')])\n"
    )
    assert read_detector(write(tmp_path, text)).data_preprocessor == dict(bgr_to_rgb=True)


def test_references_of_config_files(tmp_path, monkeypatch):
    name = 'retinanet/retinanet_r50_fpn_1x_coco.py'
    path, reference = locate_config(MMDET_CONFIGS / name)
    assert (path, reference) == (MMDET_CONFIGS / name, f'mmdet::{name}')
    write(tmp_path, SMALL)
    monkeypatch.chdir(tmp_path)
    assert locate_config('detector.py') == (tmp_path / 'detector.py', str(tmp_path / 'detector.py'))


def test_load_from_and_model_level_weights_are_found(tmp_path):
    path = small(tmp_path, load_from='coco.pth', **{'model.init_cfg': dict(type='Pretrained', checkpoint='a.pth')})
    detector = read_detector(path)
    assert detector.load_from == 'coco.pth'
    assert detector.overrides == {'init_cfg': dict(_delete_=True)}


def test_prefix_of_the_backbones_weights():
    detector = read_detector('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py')
    assert detector.checkpoint_prefix == 'backbone.'
    assert detector.overrides == {'backbone': {'init_cfg': None}}


def test_mmpretrain_is_replaced_by_its_predecessor():
    if importlib.util.find_spec('mmpretrain'):
        pytest.skip('mmpretrain is installed')
    detector = read_detector('mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py')
    assert detector.backbone['type'] == 'mmcls.ConvNeXt'
    assert detector.imports == ('mmcls.models',)
    assert detector.overrides['backbone'] == dict(init_cfg=None, type='mmcls.ConvNeXt')


def test_neither_mmpretrain_nor_its_predecessor(monkeypatch):
    find_spec = importlib.util.find_spec

    def find(name, *args):
        return None if name in ('mmpretrain', 'mmcls') else find_spec(name, *args)

    monkeypatch.setattr(detector_file.importlib.util, 'find_spec', find)
    with pytest.raises(InputError, match='mmpretrain'):
        read_detector('mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py')


def test_configs_with_imports(tmp_path):
    """mmengine's configs with import statements contain classes instead of names."""
    text = 'from mmdet.models import FCOS, FPN, DetDataPreprocessor, ResNet\n' + SMALL
    for name in ('FCOS', 'DetDataPreprocessor', 'ResNet', 'FPN'):
        text = text.replace(f"'{name}'", name)
    detector = read_detector(write(tmp_path, text))
    assert detector.content['model']['neck']['out_channels'] == 16
    encoder, layout = build_encoder(detector)
    assert layout.strides == (4, 8, 16, 32) and type(encoder.neck).__name__ == 'FPN'
    assert read_detector(write(tmp_path, SMALL)).content is None


@pytest.mark.parametrize(
    ('config', 'named'),
    [
        ('mmdet::retinanet/retinanet_r50_fpn_1x_cocoo.py', 'retinanet_r50_fpn_1x_coco.py'),
        ('mmdet::absent/absent.py', 'absent/absent.py'),
        ('mmdet::rtmdet/rtmdet_tny.py', 'did you mean rtmdet/rtmdet_(?!tta)'),
        ('absent_package::a/b.py', 'absent_package'),
        ('absent.py', 'absent.py'),
        ('mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py', 'SoftTeacher'),
        ('mmdet::_base_/default_runtime.py', 'no model'),
    ],
)
def test_configs_that_are_no_detector(config, named):
    with pytest.raises(InputError, match=named):
        read_detector(config)


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'model.neck': None}, 'no neck'),
        ({'model.backbone': None}, 'no backbone'),
        ({'model.backbone.type': 'ResNett'}, 'ResNett'),
        ({'model.neck.type': 'absent.FPN'}, 'absent.FPN'),
        ({'model.data_preprocessor': None}, 'data_preprocessor'),
        ({'model.data_preprocessor.type': 'ReIDDataPreprocessor'}, 'ReIDDataPreprocessor'),
        ({'model.data_preprocessor.mean': [0.0], 'model.data_preprocessor.std': [1.0]}, r'mean=\[0.0\]'),
        ({'model.data_preprocessor.type': 'BoxInstDataPreprocessor'}, 'BoxInstDataPreprocessor'),
        ({'custom_imports': dict(imports=['absent_module'])}, 'absent_module'),
    ],
)
def test_invalid_detectors(tmp_path, changes, named):
    with pytest.raises(InputError, match=named):
        read_detector(small(tmp_path, **changes))


def test_config_with_an_error(tmp_path):
    with pytest.raises(InputError, match='ZeroDivisionError'):
        read_detector(write(tmp_path, 'model = 1 / 0\n'))


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('ssd/ssd300_coco', 'SSDVGG'),
        ('centernet/centernet_r18_8xb16-crop512-140e_coco', 'one level'),
        ('detr/detr_r18_8xb2-500e_coco', 'one level'),
        ('carafe/faster-rcnn_r50_fpn-carafe_1x_coco', 'FPN_CARAFE'),
    ],
)
def test_encoders_that_cannot_be_pretrained(name, reason):
    with pytest.raises(InputError, match=reason) as caught:
        build_encoder(read_detector(f'mmdet::{name}.py'))
    assert '\n' not in str(caught.value)


def test_constructor_errors_are_one_line(tmp_path):
    with pytest.raises(InputError, match='mmdet.ResNet cannot be built.*19'):
        build_encoder(read_detector(small(tmp_path, **{'model.backbone.depth': 19})))


def test_views_that_do_not_fit(tmp_path):
    """A neck that concatenates upsampled maps needs sides that are divisible by its stride."""
    encoder, _ = build_encoder(read_detector('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'))
    check_view(encoder, 96)
    with pytest.raises(InputError, match='100 px'):
        check_view(encoder, 100)
    assert encoder.training
    assert torch.equal(encoder.backbone.stem.conv.bn.running_mean, torch.zeros(24))


def test_modules_that_may_be_missing_are_left_out(tmp_path):
    imports = dict(imports=['absent_module', 'colorsys'], allow_failed_imports=True)
    assert read_detector(small(tmp_path, custom_imports=imports)).imports == ('colorsys',)


@pytest.mark.parametrize(('default', 'expected'), [(-1, -1), (0, 0), (1, -1), (4, -1)])
def test_frozen_stages_of_other_backbones(tmp_path, default, expected):
    """The default of a class may freeze stages, too."""

    class Backbone(nn.Module):
        def __init__(self, frozen_stages=default):
            super().__init__()

    DETECTION_MODELS.register_module(name='FrozenByDefault', module=Backbone, force=True)
    try:
        path = small(tmp_path, **{'model.backbone': dict(_delete_=True, type='FrozenByDefault')})
        detector = read_detector(path)
    finally:
        del DETECTION_MODELS.module_dict['FrozenByDefault']
    assert detector.backbone.get('frozen_stages', default) == expected
    assert [change.path for change in detector.changes] == ['backbone.frozen_stages'] * (default > 0)


def test_a_preprocessor_with_its_own_forward(tmp_path):
    class Own(DetDataPreprocessor):
        def forward(self, data, training=False):
            return super().forward(data, training)

    class Renamed(DetDataPreprocessor):
        pass

    try:
        for cls in (Own, Renamed):
            DETECTION_MODELS.register_module(module=cls, force=True)
        with pytest.raises(InputError, match='Own'):
            read_detector(small(tmp_path, **{'model.data_preprocessor.type': 'Own'}))
        path = small(tmp_path, **{'model.data_preprocessor.type': 'Renamed'})
        assert read_detector(path).data_preprocessor == dict(pad_size_divisor=32)
    finally:
        for name in ('Own', 'Renamed'):
            del DETECTION_MODELS.module_dict[name]
