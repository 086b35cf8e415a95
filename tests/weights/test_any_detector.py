"""CCOPPretrained for detectors of mmdet with different backbones and necks, built from mmdet's own config files."""

import re

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.model import initialize
from mmengine.registry import DefaultScope
from torch import nn

from ccop_mm.utils.errors import InputError
from ccop_mm.weights import checksum

#: Modules whose tensors a checkpoint lacks: those of the levels of stride 64 and 128, which are too coarse for views of
#: 224 px, and a layer of MobileNetV2 whose output is not used.
COARSE = {
    'retinanet': ('neck.fpn_convs.3', 'neck.fpn_convs.4'),
    'pvt': ('neck.fpn_convs.3', 'neck.fpn_convs.4'),
    'hrnet': ('neck.fpn_convs.4',),
    'deformable-detr': ('neck.extra_convs',),
    'yolov3': ('backbone.conv2',),
}
NAMES = [
    'faster-rcnn',
    'retinanet',
    'libra-rcnn',
    'swin',
    'pvt',
    'hrnet',
    'rtmdet',
    'yolox',
    'yolov3',
    'convnext',
    'deformable-detr',
]
#: The tensors of RTMDet's neck that influence its last output, of stride 32, only.
RTMDET_LAST = ('neck.downsamples.1', 'neck.bottom_up_blocks.1', 'neck.out_convs.2')


def ccop(checkpoint):
    return dict(type='CCOPPretrained', checkpoint=checkpoint)


def without(state, modules):
    return {key: tensor for key, tensor in state.items() if not key.startswith(tuple(f'{name}.' for name in modules))}


def pyramid(model):
    """Computes the outputs of the neck for two random images of 128 px, by stride."""
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    model.eval()
    with torch.no_grad():
        return {128 // level.shape[-1]: level for level in model.neck(tuple(model.backbone(images)))}


def assert_equal_levels(model, expected, strides):
    found, expected = pyramid(model), pyramid(expected)
    assert set(strides) <= set(found)
    for stride in strides:
        assert expected[stride].std() > 0
        torch.testing.assert_close(found[stride], expected[stride], rtol=0, atol=1e-5)


@pytest.fixture
def refuse(build):
    """Builds a detector from a checkpoint that does not fit; returns the first line of the message."""

    def refuse(name, checkpoint, lines=1):
        with pytest.raises(InputError) as caught:
            build(name, ccop(checkpoint))
        first, *lists = str(caught.value).splitlines()
        assert first.startswith(f'{checkpoint}: ') and len(lists) == lines - 1
        return first

    return refuse


@pytest.mark.parametrize('name', NAMES)
def test_neck_outputs_equal_those_of_the_pretrained_encoder(name, build, make_encoder, save, logged):
    encoder = make_encoder(name)
    state = without(encoder.state_dict(), COARSE.get(name, ()))
    detector = build(name, ccop(save(state)))
    assert_equal_levels(detector, encoder, (8, 16, 32))
    loaded = detector.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items())
    (line,) = logged
    assert f'{len(state)} backbone and neck keys' in line and checksum(state) in line
    assert re.findall(r'(?:backbone|neck)\.[\w.]+', line) == list(COARSE.get(name, ()))


@pytest.mark.parametrize('name', ['retinanet', 'deformable-detr'])
def test_tensors_that_are_not_in_the_file_keep_the_initialization_of_the_detector(name, build, make_encoder, save):
    state = make_encoder(name).state_dict()
    detector = build(name, ccop(save(without(state, COARSE[name]))))
    torch.manual_seed(0)
    weight = next(
        module for module in detector.get_submodule(COARSE[name][0]).modules() if isinstance(module, nn.Conv2d)
    )
    # Both necks use Xavier's uniform distribution.
    fan_in, fan_out = weight.weight[0].numel(), weight.weight[:, 0].numel()
    bound = (6 / (fan_in + fan_out)) ** 0.5
    assert 0.98 * bound < weight.weight.abs().max() <= bound


def test_a_pretraining_with_small_views_lacks_the_last_level_of_a_pafpn(build, make_encoder, save):
    """A view of 112 px is too small for stride 32, whose output depends on all parts of the neck."""
    encoder = make_encoder('rtmdet')
    detector = build('rtmdet', ccop(save(without(encoder.state_dict(), RTMDET_LAST))))
    assert_equal_levels(detector, encoder, (8, 16))


@pytest.mark.parametrize(
    ('name', 'modules', 'key'),
    [
        ('rtmdet', RTMDET_LAST[:2], 'neck.downsamples.1.conv.weight'),
        ('rtmdet', ('neck.downsamples.0',), 'neck.downsamples.0.conv.weight'),
        ('retinanet', ('neck.fpn_convs.3',), 'neck.fpn_convs.3.conv.weight'),
        ('retinanet', ('neck.fpn_convs.0', 'neck.fpn_convs.3', 'neck.fpn_convs.4'), 'neck.fpn_convs.0.conv.weight'),
        ('yolov3', ('neck.detect3',), 'neck.detect3.conv1.conv.weight'),
    ],
)
def test_no_other_tensors_may_be_missing(name, modules, key, build, make_encoder, save):
    path = save(without(make_encoder(name).state_dict(), modules))
    with pytest.raises(InputError, match=rf'{re.escape(path)}: (?s:.*)missing.*{re.escape(key)}'):
        build(name, ccop(path))


def test_a_buffer_of_a_coarse_level_may_only_be_missing_with_its_parameters(build, make_encoder, save):
    state = make_encoder('rtmdet').state_dict()
    del state['neck.out_convs.2.bn.running_var']
    with pytest.raises(InputError, match=r'1 keys missing(?s:.*)neck\.out_convs\.2\.bn\.running_var'):
        build('rtmdet', ccop(save(state)))


def test_an_fpn_that_starts_at_c2_is_loaded_from_c3_upward(build, make_encoder, save, logged):
    encoder = make_encoder('faster-rcnn')
    assert_equal_levels(build('retinanet', ccop(save(encoder.state_dict()))), encoder, (8, 16, 32))
    assert 'from the pre-trained P3 upward' in logged[0] and logged[0].endswith('neck.fpn_convs.3, neck.fpn_convs.4')


def test_an_fpn_that_starts_at_c3_does_not_fit_a_detector_that_starts_at_c2(make_encoder, save, refuse):
    state = without(make_encoder('retinanet').state_dict(), COARSE['retinanet'])
    assert re.search(r'\b3 stages.*\b4\b.*neck\.start_level', refuse('faster-rcnn', save(state)))


def test_another_width_of_the_backbone_is_an_error_of_one_line(make_encoder, save, refuse):
    channels = dict(in_channels=[64, 128, 256])
    path = save(make_encoder('rtmdet', **{'backbone.widen_factor': 0.25, 'neck': channels}).state_dict())
    line = refuse('rtmdet', path)
    assert re.search(r'backbone\.widen_factor.*neck\.in_channels=\[64, 128, 256\]', line)


def test_another_width_of_a_resnet_is_an_error_of_one_line(make_encoder, save, refuse):
    path = save(
        make_encoder('faster-rcnn', **{'backbone.base_channels': 4, 'neck.in_channels': [4, 8, 16, 32]}).state_dict()
    )
    assert re.search(r'backbone\.base_channels=4\b', refuse('faster-rcnn', path))


def test_other_widths_within_the_blocks_of_a_resnet_are_an_error(make_encoder, save, refuse):
    state = make_encoder('faster-rcnn').state_dict()
    for key in [key for key in state if '.conv2.weight' in key]:
        state[key] = state[key][:, :1]
    assert re.search(
        r'0 keys missing, 8 with another shape.*backbone\.type', refuse('faster-rcnn', save(state), lines=9)
    )


@pytest.mark.parametrize(
    ('name', 'settings', 'argument'),
    [
        ('swin', {'backbone.depths': [2, 2, 6, 2]}, 'backbone.depths'),
        ('rtmdet', {'backbone.deepen_factor': 1.0}, 'backbone.deepen_factor'),
        ('pvt', {'backbone.num_layers': [1, 1, 3, 1]}, 'backbone.num_layers'),
    ],
)
def test_another_depth_is_an_error_of_one_line(name, settings, argument, make_encoder, save, refuse):
    line = refuse(name, save(make_encoder(name, **settings).state_dict()))
    assert re.search(rf'backbone: 0 keys missing.*\b0 with another shape.*{re.escape(argument)}\b', line)


@pytest.mark.parametrize(('name', 'first'), [('retinanet', 'lateral_convs'), ('rtmdet', 'out_convs')])
def test_another_width_of_the_neck_is_an_error_of_one_line(name, first, make_encoder, save, refuse):
    line = refuse(name, save(make_encoder(name, **{'neck.out_channels': 24}).state_dict()))
    assert re.search(rf'the neck: 0 keys missing.*neck\.{first}\.0\.conv\.weight.*neck\.out_channels=24\b', line)


def test_other_norm_layers_of_the_neck_are_named(build, make_encoder, save):
    path = save(make_encoder('faster-rcnn').state_dict())
    with pytest.raises(InputError, match=r'neck: 40 keys missing.*\b8 unused.*neck\.norm_cfg=None'):
        build('faster-rcnn', ccop(path), **{'neck.norm_cfg': dict(type='BN')})


def test_another_neck_is_named(build, make_encoder, save):
    encoder, other = make_encoder('faster-rcnn'), make_encoder('libra-rcnn')
    state = {f'backbone.{key}': tensor for key, tensor in encoder.backbone.state_dict().items()}
    state.update({f'neck.{key}': tensor for key, tensor in other.neck.state_dict().items()})
    with pytest.raises(InputError, match=r'match the neck: 16 keys missing.*another type'):
        build('faster-rcnn', ccop(save(state)))


@pytest.mark.parametrize('name', NAMES)
def test_half_of_the_tensors_are_an_error_of_one_line(name, make_encoder, save, refuse):
    state = make_encoder(name).state_dict()
    backbone = [key for key in without(state, COARSE.get(name, ())) if key.startswith('backbone.')]
    line = refuse(name, save({key: tensor for key, tensor in state.items() if key not in backbone[::2]}))
    assert re.search(rf'match the backbone: {len(backbone[::2])} keys missing', line) and backbone[0] in line


@pytest.mark.parametrize('name', ['swin', 'rtmdet'])
def test_values_that_are_not_finite_are_an_error_of_one_line(name, make_encoder, save, refuse):
    state = make_encoder(name).state_dict()
    key = next(key for key in state if key.startswith('neck.') and key.endswith('weight'))
    state[key].view(-1)[3] = float('nan')
    assert re.search(rf'1 of {len(state)} tensors.*{re.escape(key)}', refuse(name, save(state)))


@pytest.mark.parametrize('name', ['rtmdet', 'swin'])
def test_a_backbone_alone(name, build, make_encoder, save):
    state = make_encoder(name).state_dict()
    backbone = {key: tensor for key, tensor in state.items() if key.startswith('backbone.')}
    path, with_neck = save(backbone, 'backbone.pth'), save(state)
    loaded = build(name, dict(type='BackbonePretrained', checkpoint=path)).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in backbone.items())
    with pytest.raises(InputError, match=r"backbone\.pth.*without a neck.*type='BackbonePretrained'"):
        build(name, ccop(path))
    with pytest.raises(InputError, match=r"epoch_10\.pth.*neck.*type='CCOPPretrained'"):
        build(name, dict(type='BackbonePretrained', checkpoint=with_neck))


def test_a_detector_without_a_neck_is_an_error_of_one_line(build, make_encoder, save):
    path = save(make_encoder('faster-rcnn').state_dict())
    with pytest.raises(InputError, match='^FasterRCNN has no neck.*$'):
        build('faster-rcnn', ccop(path), neck=None)


@pytest.mark.parametrize('part', ['backbone', 'neck'])
def test_an_initializer_in_a_part_of_the_detector_is_an_error_of_one_line(part, detector_config):
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(detector_config('rtmdet'))
    detector.backbone.init_cfg = None
    detector.get_submodule(part).init_cfg = ccop('any.pth')
    with pytest.raises(InputError, match=r'^CCOPPretrained.*model=dict\(init_cfg.*$'):
        detector.init_weights()


@pytest.mark.parametrize(
    'others', [[dict(type='Pretrained', checkpoint='any.pth')], [dict(type='Constant', layer='X')]]
)
def test_an_initializer_that_would_overwrite_the_weights_is_an_error(others, build, make_encoder, save):
    path = save(make_encoder('rtmdet').state_dict())
    with pytest.raises(InputError, match=r'model\.init_cfg.*CCOPPretrained'):
        build('rtmdet', [ccop(path), *others])
    with pytest.raises(InputError, match=r'model\.init_cfg.*CCOPPretrained'):
        build('rtmdet', [dict(type='Pretrained', checkpoint='any.pth'), ccop(path)])


def test_a_mismatch_changes_nothing(build, make_encoder, save):
    detector = build('rtmdet', None, **{'backbone.init_cfg': None})
    state = make_encoder('rtmdet').state_dict()
    del state['neck.out_convs.0.conv.weight']
    before, random = checksum(detector.state_dict()), torch.get_rng_state()
    with pytest.raises(InputError):
        initialize(detector, ccop(save(state)))
    assert checksum(detector.state_dict()) == before and torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in detector.modules())


@pytest.mark.parametrize('changed', [True, False])
def test_parts_of_ccop_are_no_unknown_keys(changed, build, make_encoder, save):
    state = make_encoder('rtmdet').state_dict()
    state.update({f'encoder_k.{key}': tensor + 1 for key, tensor in state.items()})
    for name in (
        'image_projector.fc1.weight',
        'level_projector.0.weight',
        'data_preprocessor.mean',
        'image_queue.keys',
    ):
        state[name] = torch.zeros(3)
    if changed:
        state['classifier.weight'] = torch.zeros(3)
        with pytest.raises(InputError, match=r'1 of \d+ keys.*classifier\.weight'):
            build('rtmdet', ccop(save(state)))
    else:
        detector = build('rtmdet', ccop(save(state)))
        assert torch.equal(detector.neck.out_convs[0].conv.weight, state['neck.out_convs.0.conv.weight'])


@pytest.mark.parametrize('strides', [(8, 16, 32), (8, 16)])
def test_a_checkpoint_of_ccop_with_the_backbone_and_neck_of_rtmdet(strides, build, make_ccop, save):
    model = make_ccop('rtmdet', strides)
    detector = build('rtmdet', ccop(save(model.state_dict())))
    assert_equal_levels(detector, model, strides)
