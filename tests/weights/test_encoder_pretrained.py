"""EncoderPretrained: pre-training from classifiers, detectors and earlier runs."""

import re
import sys
from types import ModuleType, SimpleNamespace

import mmcls.models
import pytest
import torch
import torchvision
from foreign_states import moco_state, release_state, rename_encoder
from mmdet.registry import MODELS
from mmengine.model import initialize
from mmengine.registry import DefaultScope
from torch import nn

from ccop_mm.utils.errors import InputError
from ccop_mm.weights import checksum
from ccop_mm.weights.sources import find_prefix

PARTS = ('backbone.', 'neck.')
WIDE_RESNET = {'backbone.base_channels': 64, 'neck.in_channels': [64, 128, 256, 512]}


def init_cfg(checkpoint, **settings):
    return dict(type='EncoderPretrained', checkpoint=str(checkpoint), **settings)


def select(state, *prefixes):
    return {key: tensor for key, tensor in state.items() if key.startswith(prefixes)}


def bare(state):
    """Returns the tensors of the backbone without a prefix."""
    return {key.removeprefix('backbone.'): tensor for key, tensor in select(state, 'backbone.').items()}


def assert_loaded(model, expected):
    state = model.state_dict()
    assert expected and set(expected) <= set(state)
    for key, tensor in expected.items():
        assert torch.equal(state[key], tensor), key


@pytest.fixture
def refuse(build):
    """Builds a detector from a file that does not fit; returns the first line of the message."""

    def refuse(name, checkpoint, lines=1, **settings):
        with pytest.raises(InputError) as caught:
            build(name, init_cfg(checkpoint, **settings))
        found = str(caught.value).splitlines()
        assert len(found) == lines, found
        return found[0]

    return refuse


@pytest.fixture
def classifier():
    """Builds a classifier of mmcls with a random state, and returns its state dict."""

    def build(backbone, channels, neck=None):
        with DefaultScope.overwrite_default_scope('mmcls'):
            model = mmcls.models.ImageClassifier(
                backbone=backbone,
                neck=neck or dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=3, in_channels=channels),
            )
        generator = torch.Generator().manual_seed(3)
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator))
        return model.state_dict()

    return build


CONVNEXT = dict(type='ConvNeXt', arch=dict(depths=[1, 1, 2, 1], channels=[8, 16, 32, 64]))


def test_a_resnet_of_torchvision_computes_the_same(build, save, logged):
    torch.manual_seed(1)
    source = torchvision.models.resnet18().eval()
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    path = save(source.state_dict())
    detector = build('faster-rcnn', init_cfg(path), **WIDE_RESNET).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = nn.Sequential(*[*source.children()][:-2])(images)
        torch.testing.assert_close(detector.backbone(images)[-1], expected, rtol=0, atol=1e-5)
    (line,) = logged
    own = {f'backbone.{key}': tensor for key, tensor in source.state_dict().items() if not key.startswith('fc.')}
    parameters = sum(parameter.numel() for name, parameter in source.named_parameters() if not name.startswith('fc.'))
    assert f'{len(own)} backbone keys ({parameters:,} parameters, blake2b {checksum(own)})' in line
    assert path in line and 'neck keeps its initialization' in line and line.endswith(': fc')


def test_a_neck_without_weights_in_the_file_is_initialized_by_the_detector(build, save, make_encoder):
    state = select(make_encoder('faster-rcnn').state_dict(), 'backbone.')
    detector = build('faster-rcnn', init_cfg(save(state)))
    weight = detector.neck.lateral_convs[0].conv.weight
    bound = (6 / (8 + 16)) ** 0.5  # Xavier's uniform distribution
    assert 0.9 * bound < weight.abs().max() <= bound
    assert_loaded(detector, state)


@pytest.mark.parametrize('name', ['torchvision://resnet18', 'mmcls://small', 'https://host/resnet18.pth'])
def test_names_are_resolved_and_read_with_weights_only(name, build, make_encoder, monkeypatch):
    state = make_encoder('faster-rcnn').state_dict()
    content = dict(state_dict=select(state, 'backbone.')) if name.startswith('mmcls') else bare(state)
    calls = []

    def fetch(address, **options):
        calls.append((address, options['weights_only']))
        return content

    monkeypatch.setattr('torch.hub.load_state_dict_from_url', fetch)
    monkeypatch.setattr('mmengine.runner.checkpoint.get_mmcls_models', lambda: {'small': 'https://host/small.pth'})
    assert_loaded(build('faster-rcnn', init_cfg(name)), select(state, 'backbone.'))
    assert len(calls) == 1 and calls[0][0].startswith('https://') and calls[0][1] is True


@pytest.mark.parametrize('name', ['torchvision://resnet19', 'mmcls://resnet19', 'open-mmlab://resnet19'])
def test_unknown_names_are_an_error_of_one_line(name, refuse):
    assert re.search(r'resnet19', refuse('faster-rcnn', name))


@pytest.fixture
def timm(monkeypatch):
    """Replaces timm, which is not installed, by the two functions that are used; returns the calls."""
    module, calls = ModuleType('timm.models'), []
    sources = {
        'resnet18.a1_in1k': SimpleNamespace(hf_hub_id='timm/resnet18.a1_in1k', url=''),
        'resnet18.no_weights': SimpleNamespace(hf_hub_id=None, url=''),
    }

    def load(model_id, weights_only=False):
        calls.append((model_id, weights_only))
        return module.state

    module.get_pretrained_cfg = sources.get
    module.load_state_dict_from_hf = load
    module.calls = calls
    monkeypatch.setitem(sys.modules, 'timm', ModuleType('timm'))
    monkeypatch.setitem(sys.modules, 'timm.models', module)
    return module


def test_weights_of_timm(timm, build, make_encoder, logged):
    state = make_encoder('faster-rcnn').state_dict()
    timm.state = {**bare(state), 'fc.weight': torch.ones(2)}
    assert_loaded(build('faster-rcnn', init_cfg('timm://resnet18.a1_in1k')), select(state, 'backbone.'))
    assert timm.calls == [('timm/resnet18.a1_in1k', True)]
    assert logged[0].endswith(': fc')


@pytest.mark.parametrize('name', ['resnet18.no_weights', 'resnet18.unknown'])
def test_unknown_weights_of_timm_are_an_error_of_one_line(name, timm, refuse):
    assert re.search(rf'timm.*{re.escape(name)}', refuse('faster-rcnn', f'timm://{name}'))


def test_timm_that_is_not_installed_is_an_error_of_one_line(refuse, monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    monkeypatch.setitem(sys.modules, 'timm.models', None)
    assert re.search(r'timm://resnet50 .*pip install timm', refuse('faster-rcnn', 'timm://resnet50'))


def test_a_classifier_of_mmcls(build, save, classifier, logged):
    """The detector has a norm layer after each stage, the classifier after the last one only."""
    state = classifier(CONVNEXT, 64)
    detector = build('convnext', init_cfg(save(state)))
    assert_loaded(detector, select(state, 'backbone.'))
    norms = [f'backbone.norm{stage}' for stage in range(3)]
    kept = f'not in the file and as initialized: {", ".join(norms)}, neck keeps its initialization'
    assert logged[0].endswith(f'{kept}, left out of the file: head')
    for name in norms:
        norm = detector.get_submodule(name)
        assert (norm.weight == 1).all() and (norm.bias == 0).all()


def test_other_norm_layers_must_not_be_missing(save, classifier, refuse):
    state = classifier(CONVNEXT, 64)
    del state['backbone.stages.3.0.norm.weight']
    assert re.search(r'backbone: 1 keys missing', refuse('convnext', save(state), lines=2))


def test_a_file_without_the_norm_layers_of_unused_maps_and_vice_versa(build, save, make_encoder, logged):
    state = make_encoder('swin').state_dict()
    detector = build(
        'swin',
        init_cfg(save(state)),
        **{'backbone.out_indices': (1, 2, 3), 'neck.in_channels': [48, 96, 192], 'neck': dict(num_outs=4)},
    )
    assert_loaded(detector, {key: tensor for key, tensor in select(state, 'backbone.').items() if '.norm0.' not in key})
    assert 'norm0' in logged[0]


def original_swin(state):
    """Converts mmdet's keys to those of the original files, and the patch merging to the order of its four patches."""
    original = {}
    for key, tensor in bare(state).items():
        if re.match(r'norm[0-2]\.', key):
            continue
        key = re.sub(r'^norm3\.', 'norm.', key).replace('projection', 'proj').replace('stages.', 'layers.')
        key = key.replace('ffn.layers.0.0.', 'mlp.fc1.').replace('ffn.layers.1.', 'mlp.fc2.').replace('w_msa.', '')
        if '.downsample.' in key:
            # mmdet: channel c of the patch at (row, column) is input 4 c + 2 row + column, as nn.Unfold orders them.
            # Original: inputs are concatenated patches in the order (0, 0), (1, 0), (0, 1), (1, 1).
            patches = [tensor[..., 2 * row + column :: 4] for column in (0, 1) for row in (0, 1)]
            tensor = torch.cat(patches, dim=-1)
        original[key] = tensor
    original['layers.0.blocks.1.attn_mask'] = torch.zeros(4)
    return {**original, 'head.weight': torch.zeros(3, 192), 'head.bias': torch.zeros(3)}


def test_the_original_file_of_swin(build, save, make_encoder, logged, tmp_path):
    state = make_encoder('swin').state_dict()
    path = tmp_path / 'swin.pth'
    torch.save(dict(model=original_swin(state)), path)
    detector = build('swin', init_cfg(path))
    learned = {
        key: tensor
        for key, tensor in select(state, 'backbone.').items()
        if not re.match(r'backbone\.norm\d', key) and not key.endswith('relative_position_index')
    }
    assert_loaded(detector, learned)
    assert f'{len(learned)} backbone keys' in logged[0]
    assert 'backbone.norm0, backbone.norm1, backbone.norm2, backbone.norm3' in logged[0]
    assert re.search(r'left out of the file: (head, norm|norm, head)$', logged[0])


def test_another_window_of_swin_is_an_error_of_one_line(save, make_encoder, refuse):
    path = save(make_encoder('swin', **{'backbone.window_size': 4}).state_dict())
    assert re.search(r'backbone: 0 keys missing, 8 with another shape', refuse('swin', path, lines=9))


def original_pvt(state):
    """Converts mmdet's keys to those of the original files, with queries apart from keys and values."""
    original = {'norm.weight': torch.zeros(3), 'cls_token': torch.zeros(1, 1, 128), 'head.weight': torch.zeros(2)}
    for key, tensor in bare(state).items():
        stage, part, rest = re.match(r'layers\.(\d)\.(\d)\.(.+)', key).groups()
        number = int(stage) + 1
        if part == '2':
            continue
        if part == '0':
            original[f'patch_embed{number}.{rest.replace("projection.", "proj.")}'] = tensor
        elif rest == '0.pos_embed':
            extra = torch.zeros(1, int(number == 4), tensor.shape[-1])  # the class token of the last stage
            original[f'pos_embed{number}'] = torch.cat([extra, tensor], dim=1)
        else:
            block, name = rest.split('.', 1)
            name = name.replace('attn.attn.', 'attn.').replace('attn.out_proj.', 'attn.proj.')
            name = name.replace('ffn.layers.0.', 'mlp.fc1.').replace('ffn.layers.3.', 'mlp.fc2.')
            if name.startswith('mlp.') and name.endswith('weight'):
                tensor = tensor[..., 0, 0]
            name = f'block{number}.{int(block) - 1}.{name}'
            if 'in_proj_' in name:
                query, key_value = tensor[: len(tensor) // 3], tensor[len(tensor) // 3 :]
                original[name.replace('in_proj_', 'q.')] = query
                original[name.replace('in_proj_', 'kv.')] = key_value
            else:
                original[name] = tensor
    return original


def test_the_original_file_of_pvt(build, save, make_encoder, logged):
    state = make_encoder('pvt').state_dict()
    detector = build('pvt', init_cfg(save(original_pvt(state))))
    learned = {k: t for k, t in select(state, 'backbone.').items() if not re.match(r'backbone\.layers\.\d\.2\.', k)}
    assert_loaded(detector, learned)
    assert f'{len(learned)} backbone keys' in logged[0] and 'head' in logged[0]


def test_an_incomplete_original_file_is_an_error_of_one_line(save, make_encoder, refuse):
    state = original_pvt(make_encoder('pvt').state_dict())
    del state['block2.0.attn.kv.weight']
    assert 'PyramidVisionTransformer' in refuse('pvt', save(state))


@pytest.mark.parametrize('name', ['rtmdet', 'yolox', 'hrnet', 'faster-rcnn', 'libra-rcnn', 'yolov3'])
def test_a_whole_detector(name, build, detector_config, save, logged):
    with DefaultScope.overwrite_default_scope('mmdet'):
        source = MODELS.build({**detector_config(name), 'init_cfg': None})
    generator = torch.Generator().manual_seed(5)
    for tensor in source.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
    state = {**source.state_dict(), 'ema_backbone_conv_weight': torch.zeros(1)}
    detector = build(name, init_cfg(save(state)))
    expected = select(source.state_dict(), *PARTS)
    assert_loaded(detector, expected)
    (line,) = logged
    assert f'{len(expected)} backbone and neck keys' in line and checksum(expected) in line
    heads = list(dict.fromkeys(key.split('.')[0] for key in source.state_dict() if not key.startswith(PARTS)))
    assert line.endswith(f'left out of the file: {", ".join([*heads, "ema_*"])}') and len(heads) > 0


def test_the_fpn_of_a_detector_that_starts_at_c2(build, make_encoder, save, logged):
    encoder = make_encoder('faster-rcnn')
    detector = build('retinanet', init_cfg(save(encoder.state_dict())))
    assert torch.equal(detector.neck.lateral_convs[0].conv.weight, encoder.neck.lateral_convs[1].conv.weight)
    assert 'from the pre-trained P3 upward' in logged[0]


def test_an_earlier_run_of_ccop(make_ccop, save, logged):
    state = make_ccop('rtmdet', (8, 16), seed=1).state_dict()
    model = make_ccop('rtmdet', (8, 16, 32), init_cfg(save(state)), seed=2)
    assert_loaded(model, select(state, *PARTS))
    assert re.search(r'neck\.bottom_up_blocks\.1, .*left out of the file:.*\bencoder_k\b', logged[0])
    # The projectors are those of the new run.
    assert not torch.equal(model.image_projector.fc1.weight, state['image_projector.fc1.weight'])


@pytest.mark.parametrize('name', ['rtmdet', 'swin', 'retinanet'])
def test_query_and_key_encoder_of_ccop_equal_the_file(name, make_ccop, make_encoder, save):
    """The key encoder copies the query encoder at the first update."""
    encoder = make_encoder(name)
    model = make_ccop(name, init_cfg=init_cfg(save(encoder.state_dict())))
    model.encoder_k.update(model._encoder_parts())
    for part in ('backbone', 'neck'):
        expected = encoder[part].state_dict()
        for state in (model.get_submodule(part).state_dict(), model.encoder_k.get_submodule(part).state_dict()):
            assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize(
    ('convert', 'with_neck'),
    [
        (moco_state, False),
        (release_state, True),
        (lambda state: {**rename_encoder(state, 'detectron2'), 'roi_heads.box_head.fc1.weight': torch.ones(1)}, True),
    ],
)
def test_files_of_other_projects(convert, with_neck, build, make_encoder, save):
    state = {**make_encoder('faster-rcnn').state_dict()}
    detector = build('faster-rcnn', init_cfg(save(convert(state))))
    assert_loaded(detector, state if with_neck else select(state, 'backbone.'))


def two_backbones(state):
    return {
        f'{model}.{key}': tensor + number
        for number, model in enumerate(('student', 'teacher'))
        for key, tensor in state.items()
    }


def test_the_prefix_selects_one_of_several_backbones(build, make_encoder, save, refuse, logged):
    state = make_encoder('faster-rcnn').state_dict()
    path = save(two_backbones(state))
    line = refuse('faster-rcnn', path)
    assert "prefix='student.backbone.'" in line and "prefix='teacher.backbone.'" in line
    detector = build('faster-rcnn', init_cfg(path, prefix='teacher.backbone.'))
    assert_loaded(detector, {key: tensor + 1 for key, tensor in select(state, 'backbone.').items()})
    assert 'neck keeps its initialization' in logged[-1]


def test_a_single_backbone_under_another_prefix_is_found(build, make_encoder, save):
    state = make_encoder('rtmdet').state_dict()
    model = {f'model.{key}': tensor for key, tensor in state.items()}
    assert_loaded(build('rtmdet', init_cfg(save(model))), state)


def test_an_unknown_prefix_is_an_error_of_one_line(make_encoder, save, refuse):
    path = save(make_encoder('rtmdet').state_dict())
    assert re.search(r"'encoder\.'.*\bbackbone, neck", refuse('rtmdet', path, prefix='encoder.'))


@pytest.mark.parametrize(
    ('prefixes', 'expected'),
    [
        (['backbone.', 'encoder_k.backbone.', 'head.'], 'backbone.'),
        (['', 'ema.'], ''),
        (['net.'], 'net.'),
        (['model.net.', 'head.'], 'model.net.'),
        (['encoder_k.', 'encoder_q.'], 'encoder_q.'),
    ],
)
def test_prefixes(prefixes, expected):
    names = ['a.w', 'b.w', 'c.w']
    keys = [f'{prefix}{name}' for prefix in prefixes for name in (['x'] if prefix == 'head.' else names)]
    assert find_prefix(keys, names, 'Net') == expected


def test_a_few_names_under_another_prefix_do_not_determine_the_prefix():
    """Names such as conv1.weight occur within the blocks of other networks."""
    names = [f'{letter}.w' for letter in 'abcdef']
    assert find_prefix(['backbone.x.a.w', 'backbone.y.w', 'head.w'], names, 'Net') == 'backbone.'
    assert find_prefix(['x.a.w', 'y.w'], names, 'Net') == ''


def test_a_neck_of_another_type_is_left_out(build, make_encoder, save, logged):
    state = make_encoder('faster-rcnn').state_dict()
    other = {**select(state, 'backbone.'), 'neck.fc0.weight': torch.ones(2), 'neck.bn0.weight': torch.ones(2)}
    assert_loaded(build('faster-rcnn', init_cfg(save(other))), select(state, 'backbone.'))
    assert 'neck keeps its initialization' in logged[0] and logged[0].endswith(': neck')


def test_a_part_of_a_neck_is_an_error_that_names_the_remedy(build, make_encoder, save):
    state = make_encoder('faster-rcnn').state_dict()
    path = save({key: tensor for key, tensor in state.items() if not key.startswith('neck.lateral_convs.1.')})
    with pytest.raises(InputError, match=r"2 keys missing.*prefix='backbone\.'(?s:.*)neck\.lateral_convs\.1"):
        build('faster-rcnn', init_cfg(path))
    detector = build('faster-rcnn', init_cfg(path, prefix='backbone.'))
    assert_loaded(detector, select(state, 'backbone.'))
    assert not torch.equal(detector.neck.fpn_convs[0].conv.weight, state['neck.fpn_convs.0.conv.weight'])


def test_both_lists_of_a_mismatch(build, make_encoder, save):
    state = make_encoder('rtmdet').state_dict()
    state['backbone.stage1.0.conv.other'] = state.pop('backbone.stage1.0.conv.weight')
    with pytest.raises(InputError) as caught:
        build('rtmdet', init_cfg(save(state)))
    first, *lists = str(caught.value).splitlines()
    assert re.search(r'backbone: 1 keys missing, 0 with another shape, 1 unused', first) and len(first) < 300
    assert [line.split()[-1] for line in lists] == ['backbone.stage1.0.conv.weight', 'backbone.stage1.0.conv.other']


@pytest.mark.parametrize('name', ['swin', 'rtmdet', 'faster-rcnn'])
def test_half_of_a_backbone_is_an_error_of_one_line(name, make_encoder, save, refuse):
    state = bare(make_encoder(name).state_dict())
    path = save({key: tensor for number, (key, tensor) in enumerate(state.items()) if number % 2})
    assert re.search(r'backbone: \d+ keys missing, 0 with another shape, 0 unused', refuse(name, path))


def test_a_deeper_network_without_a_prefix_is_an_error_of_one_line(make_encoder, save, refuse):
    deeper = bare(make_encoder('swin', **{'backbone.depths': [2, 2, 6, 2]}).state_dict())
    assert re.search(
        r'0 keys missing, 0 with another shape, \d+ unused.*backbone\.depths', refuse('swin', save(deeper))
    )
    deeper = bare(make_encoder('faster-rcnn', **{'backbone.depth': 34}).state_dict())
    assert re.search(r'ResNet-34.*ResNet-18.*backbone\.depth=34', refuse('faster-rcnn', save(deeper)))


def test_another_width_is_an_error_of_one_line(make_encoder, save, refuse):
    path = save(
        bare(make_encoder('rtmdet', **{'backbone.widen_factor': 0.25, 'neck.in_channels': [64, 128, 256]}).state_dict())
    )
    assert re.search(r'\b\d+ with another shape.*backbone\.widen_factor', refuse('rtmdet', path))


def test_another_architecture_is_an_error_of_one_line(make_encoder, save, refuse):
    path = save(bare(make_encoder('swin').state_dict()))
    assert re.search(r'CSPNeXt.*patch_embed\.projection\.weight', refuse('rtmdet', path))


def test_values_that_are_not_finite_are_an_error_of_one_line(make_encoder, save, refuse):
    state = make_encoder('rtmdet').state_dict()
    state['backbone.stem.0.conv.weight'][0, 0, 0, 0] = float('inf')
    assert re.search(rf'1 of {len(state)} tensors.*backbone\.stem\.0\.conv\.weight', refuse('rtmdet', save(state)))


def test_values_of_a_head_that_are_not_finite_do_not_matter(build, make_encoder, save):
    state = make_encoder('rtmdet').state_dict()
    detector = build('rtmdet', init_cfg(save({**state, 'bbox_head.scale': torch.tensor(float('nan'))})))
    assert_loaded(detector, state)


def test_a_missing_file_is_an_error_of_one_line(refuse):
    assert re.search(r'absent\.pth does not exist', refuse('rtmdet', 'absent.pth'))


def test_a_model_without_a_backbone_is_an_error():
    with pytest.raises(InputError, match=r'EncoderPretrained.*\bnot Conv2d\b'):
        initialize(nn.Conv2d(3, 3, 1), init_cfg('any.pth'))


def test_a_detector_without_a_neck(build, make_encoder, save):
    state = make_encoder('faster-rcnn').state_dict()
    assert_loaded(build('faster-rcnn', init_cfg(save(state)), neck=None), select(state, 'backbone.'))
