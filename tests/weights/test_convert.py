import re

import pytest
import torch
import torch.nn.functional as F
import torchvision
from foreign_states import moco_state, release_state
from mmdet.models import FPN, ResNet, ResNeXt
from small_transfer import FPN_WIDTH, WIDTH, channels, pretraining

from ccop_mm.utils.errors import InputError
from ccop_mm.version import __version__
from ccop_mm.weights import TARGETS, checksum, convert, read_checkpoint

NORM = {'weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'}


@pytest.fixture
def save(tmp_path):
    """Saves a state dict as a pre-training run does; returns the path."""

    def save(state, **meta):
        path = tmp_path / 'epoch_800.pth'
        torch.save(dict(meta=meta, state_dict=state, optimizer={}), path)
        return path

    return save


def encoder_state(depth=50):
    return {k: v for k, v in pretraining(depth).state_dict().items() if k.startswith(('backbone.', 'neck.'))}


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('to', TARGETS)
def test_exports_are_imported_bit_by_bit(save, tmp_path, to, suffix):
    checkpoint = save(pretraining(50).state_dict(), epoch=800, cfg='model = dict()')
    line = convert(checkpoint, to, tmp_path / f'out{suffix}')
    assert f'out{suffix}: ResNet-50' in line and 'epoch 800' in line
    convert(tmp_path / f'out{suffix}', 'ccop', tmp_path / 'back.pth')
    state, meta = read_checkpoint(tmp_path / 'back.pth')
    expected = encoder_state()
    fpn_omitted = to in ('torchvision', 'timm')
    assert line.endswith('FPN omitted') == fpn_omitted
    if fpn_omitted:
        expected = {key: tensor for key, tensor in expected.items() if key.startswith('backbone.')}
    assert set(state) == set(expected)
    assert all(torch.equal(state[key], tensor) and state[key].dtype == tensor.dtype for key, tensor in expected.items())
    # The metadata of the pre-training run is kept.
    assert meta == dict(
        names='ccop',
        source=f'out{suffix}',
        source_format='torchvision' if to == 'timm' else to,
        encoder_checksum=checksum(expected),
        checksum=checksum(expected),
        ccop_mm=__version__,
        epoch='800',
        config='model = dict()',
    )


def test_torchvision_computes_the_same_c5(save, tmp_path):
    ours = ResNet(50, norm_eval=False)
    generator = torch.Generator().manual_seed(3)
    for name, tensor in ours.state_dict().items():
        if name.endswith(('running_mean', 'running_var', '.bias')) or '.bn' in name and name.endswith('weight'):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 + 0.5)
    convert(
        save({f'backbone.{key}': tensor for key, tensor in ours.state_dict().items()}),
        'torchvision',
        tmp_path / 'tv.pth',
    )
    theirs = torchvision.models.resnet50()
    missing, unexpected = theirs.load_state_dict(read_checkpoint(tmp_path / 'tv.pth')[0], strict=False)
    assert (missing, unexpected) == (['fc.weight', 'fc.bias'], [])
    c5 = torch.nn.Sequential(*[*theirs.children()][:-2]).eval()
    ours.eval()
    image = torch.rand(1, 3, 64, 96, generator=generator)
    with torch.no_grad():
        found, expected = c5(image), ours(image)[-1]
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def detectron2_shapes(stage_blocks, width, fpn):
    """Returns the keys and shapes of detectron2's ResNet-FPN with bottleneck blocks."""
    shapes = {}

    def conv(name, out, into, side):
        shapes[f'{name}.weight'] = (out, into, side, side)
        shapes.update({f'{name}.norm.{kind}': (out,) if kind != 'num_batches_tracked' else () for kind in NORM})

    conv('backbone.bottom_up.stem.conv1', width, 3, 7)
    into = width
    for stage, blocks in enumerate(stage_blocks):
        middle, out = width * 2**stage, 4 * width * 2**stage
        for block in range(blocks):
            name = f'backbone.bottom_up.res{stage + 2}.{block}'
            if block == 0:
                conv(f'{name}.shortcut', out, into, 1)
            conv(f'{name}.conv1', middle, into, 1)
            conv(f'{name}.conv2', middle, middle, 3)
            conv(f'{name}.conv3', out, middle, 1)
            into = out
        conv(f'backbone.fpn_lateral{stage + 2}', fpn, out, 1)
        conv(f'backbone.fpn_output{stage + 2}', fpn, fpn, 3)
    return shapes


@pytest.mark.parametrize(('depth', 'blocks'), [(50, (3, 4, 6, 3)), (101, (3, 4, 23, 3))])
def test_detectron2_keys_and_shapes(save, tmp_path, depth, blocks):
    convert(save(pretraining(depth).state_dict()), 'detectron2', tmp_path / 'd2.pth')
    # detectron2's checkpointer reads the entry 'model'.
    found = torch.load(tmp_path / 'd2.pth', weights_only=True)['model']
    fpn = found['backbone.fpn_lateral2.weight'].shape[0]
    assert {key: tuple(tensor.shape) for key, tensor in found.items()} == detectron2_shapes(blocks, WIDTH, fpn)


def released_forward(state, image):
    """Computes P2 to P5 of the CCOP authors' encoder in inference mode, from the keys of their checkpoint.

    The encoder is detectron2's ResNet-50 with the stride in the 3x3 convolution, and its FPN with norm layers and
    nearest upsampling.
    """

    def conv(name, x, stride=1, padding=0):
        x = F.conv2d(x, state[f'{name}.weight'], stride=stride, padding=padding)
        mean, variance, weight, bias = (
            state[f'{name}.norm.{kind}'].view(1, -1, 1, 1) for kind in ('running_mean', 'running_var', 'weight', 'bias')
        )
        return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias

    x = torch.relu(conv('backbone_q.bottom_up.stem.conv1', image, stride=2, padding=3))
    x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    stages = []
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            name = f'backbone_q.bottom_up.res{stage + 2}.{block}'
            stride = 2 if stage > 0 and block == 0 else 1
            y = torch.relu(conv(f'{name}.conv1', x))
            y = torch.relu(conv(f'{name}.conv2', y, stride, padding=1))
            y = conv(f'{name}.conv3', y)
            x = torch.relu(y + (conv(f'{name}.shortcut', x, stride) if block == 0 else x))
        stages.append(x)
    levels, top = [], None
    for level in (5, 4, 3, 2):
        lateral = conv(f'backbone_q.fpn_lateral{level}', stages[level - 2])
        top = lateral if top is None else lateral + top.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        levels.insert(0, conv(f'backbone_q.fpn_output{level}', top, padding=1))
    return levels


def test_the_imported_authors_release_computes_the_same(save, tmp_path):
    state = release_state(pretraining(50).state_dict())
    line = convert(save(state, epoch=800), 'ccop', tmp_path / 'ccop.pth')
    assert "authors' release" in line and 'epoch 800' in line
    imported = read_checkpoint(tmp_path / 'ccop.pth')[0]
    # The encoder has another random initialization, so equal outputs must come from the loaded weights.
    backbone = ResNet(50, base_channels=WIDTH, norm_eval=False)
    neck = FPN(channels(50), FPN_WIDTH, num_outs=4, norm_cfg=dict(type='BN'))
    for part, name in ((backbone, 'backbone.'), (neck, 'neck.')):
        part.load_state_dict({k.removeprefix(name): v for k, v in imported.items() if k.startswith(name)})
        part.double().eval()
    image = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    with torch.no_grad():
        found = neck(backbone(image))
        expected = released_forward({key: tensor.double() for key, tensor in state.items()}, image)
    assert len(found) == 4 and expected[0].std() > 1e-3
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_the_query_encoder_of_a_moco_file_is_imported(save, tmp_path):
    expected = {key: tensor for key, tensor in encoder_state().items() if key.startswith('backbone.')}
    line = convert(save(moco_state(expected)), 'ccop', tmp_path / 'moco.pth')
    assert re.search(r'moco\.pth: ResNet-50 .*\b318 tensors.*MoCo v2$', line)
    state = read_checkpoint(tmp_path / 'moco.pth')[0]
    assert set(state) == set(expected) and all(torch.equal(state[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda state: state.pop('backbone_q.bottom_up.res4.5.conv2.norm.bias'),
            r'missing.*: backbone\.layer3\.5\.bn2\.bias',
        ),
        (
            lambda state: state.update({'backbone_q.fpn_lateral3.bias': torch.zeros(32)}),
            r'not used.*: neck\.lateral_convs\.1\.conv\.bias',
        ),
        (
            lambda state: [state.pop(key) for key in [*state] if key.startswith('backbone_q.bottom_up.res5.2.')],
            'ResNet-18, -34, -50, -101 or -152',
        ),
        (
            lambda state: state.update({'proposal_generator.anchor': torch.zeros(1)}),
            r'proposal_generator\.anchor',
        ),
        (lambda state: (state.clear(), state.update(classifier=torch.zeros(1))), r'1 of 1 keys.*classifier'),
    ],
)
def test_incomplete_or_unknown_encoders_are_not_converted(save, tmp_path, change, message):
    state = release_state(pretraining(50).state_dict())
    change(state)
    path = save(state)
    with pytest.raises(InputError, match=f'epoch_800.pth: (?s:.*){message}'):
        convert(path, 'ccop', tmp_path / 'out.pth')
    assert [file.name for file in tmp_path.iterdir()] == ['epoch_800.pth']


@pytest.mark.parametrize('to', TARGETS)
def test_values_that_are_not_finite_are_not_exported(save, tmp_path, to):
    state = {key: tensor.clone() for key, tensor in pretraining(18).state_dict().items()}
    state['backbone.layer2.0.conv1.weight'][3, 1, 0, 0] = float('nan')
    state['backbone.bn1.running_var'][0] = float('inf')
    with pytest.raises(InputError, match=r'epoch_800\.pth: 2 of .*backbone\.bn1\.running_var'):
        convert(save(state), to, tmp_path / 'out.pth')
    assert [file.name for file in tmp_path.iterdir()] == ['epoch_800.pth']


def test_values_of_the_queue_that_are_not_finite_do_not_prevent_an_export(save, tmp_path):
    state = dict(pretraining(18).state_dict())
    state['image_queue.keys'] = state['image_queue.keys'] * float('nan')
    convert(save(state), 'ccop', tmp_path / 'out.pth')
    assert (tmp_path / 'out.pth').is_file()


def test_the_input_is_not_overwritten(save):
    path = save(pretraining(18).state_dict())
    before = path.read_bytes()
    with pytest.raises(InputError, match=f'{re.escape(str(path))} is the input'):
        convert(path, 'ccop', path)
    assert path.read_bytes() == before


def test_the_former_name_of_the_ccop_format_is_accepted(save, tmp_path):
    checkpoint = save(pretraining(18).state_dict(), epoch=800)
    for to in ('mmdet', 'ccop'):
        convert(checkpoint, to, tmp_path / f'{to}.pth')
    former, state = read_checkpoint(tmp_path / 'mmdet.pth'), read_checkpoint(tmp_path / 'ccop.pth')
    assert former[1] == state[1] and former[1]['names'] == 'ccop'
    assert set(former[0]) == set(state[0]) and all(torch.equal(former[0][key], state[0][key]) for key in state[0])


def test_an_unknown_target_format_is_an_error(save, tmp_path):
    with pytest.raises(InputError, match='onnx.*torchvision'):
        convert(save(pretraining(18).state_dict()), 'onnx', tmp_path / 'out.pth')
    assert not (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize(
    'name', ['rtmdet', 'swin', 'pvt', 'hrnet', 'yolov3', 'convnext', 'libra-rcnn', 'deformable-detr']
)
def test_any_backbone_and_neck_are_exported_in_ccop_format(name, make_encoder, build, save, tmp_path):
    state = make_encoder(name).state_dict()
    line = convert(save({**state, 'image_queue.keys': torch.zeros(3)}, epoch=5), 'ccop', tmp_path / 'out.safetensors')
    backbone = 'ResNet-18' if name in ('libra-rcnn', 'deformable-detr') else 'backbone'
    neck = 'FPN' if name in ('swin', 'pvt', 'convnext') else 'neck'
    assert f'{backbone} and {neck} in ccop format, {len(state)} tensors' in line and line.endswith('epoch 5')
    exported, meta = read_checkpoint(tmp_path / 'out.safetensors')
    assert exported.keys() == state.keys() and all(torch.equal(exported[key], state[key]) for key in state)
    assert meta['encoder_checksum'] == checksum(state)
    detector = build(name, dict(type='CCOPPretrained', checkpoint=str(tmp_path / 'out.safetensors')))
    assert all(torch.equal(detector.state_dict()[key], state[key]) for key in state)


@pytest.mark.parametrize('to', ['torchvision', 'timm', 'detectron2'])
@pytest.mark.parametrize('name', ['rtmdet', 'swin', 'hrnet'])
def test_other_backbones_are_not_exported_in_formats_without_them(name, to, make_encoder, save, tmp_path):
    path = save(make_encoder(name).state_dict())
    with pytest.raises(InputError, match=rf'^{re.escape(str(path))}: {to} .*--to ccop\)$'):
        convert(path, to, tmp_path / 'out.pth')
    assert not (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize('name', ['libra-rcnn', 'retinanet', 'deformable-detr'])
def test_a_neck_that_detectron2_does_not_have_is_not_exported_but_omitted_elsewhere(name, make_encoder, save, tmp_path):
    path = save(make_encoder(name).state_dict())
    with pytest.raises(InputError, match='detectron2.*FPN.*--to ccop'):
        convert(path, 'detectron2', tmp_path / 'out.pth')
    line = convert(path, 'torchvision', tmp_path / 'out.pth')
    assert 'ResNet-18 in torchvision format' in line and line.endswith(' omitted')
    assert all(not key.startswith('neck') for key in read_checkpoint(tmp_path / 'out.pth')[0])


@pytest.mark.parametrize('lacking', [(), ('neck.fpn_convs.3.', 'neck.fpn_convs.4.'), ('neck.fpn_convs.2.',)])
def test_an_fpn_that_starts_at_c3_is_exported_as_it_is(lacking, make_encoder, save, tmp_path):
    """A run leaves out P6 and P7; with smaller views also the convolution of P5."""
    state = make_encoder('retinanet').state_dict()
    if 'neck.fpn_convs.2.' in lacking:
        lacking += ('neck.fpn_convs.3.', 'neck.fpn_convs.4.')
    state = {key: tensor for key, tensor in state.items() if not key.startswith(lacking or 'none')}
    assert 'ResNet-18 and FPN' in convert(save(state), 'ccop', tmp_path / 'out.pth')
    assert read_checkpoint(tmp_path / 'out.pth')[0].keys() == state.keys()


def test_a_resnext_has_the_names_and_shapes_of_torchvision(save, tmp_path):
    with torch.device('meta'):
        theirs = torchvision.models.resnext50_32x4d().state_dict()
    ours = ResNeXt(depth=50, groups=32, base_width=4, norm_eval=False)
    path = save({f'backbone.{key}': tensor for key, tensor in ours.state_dict().items()})
    assert 'ResNeXt-50 in torchvision format' in convert(path, 'torchvision', tmp_path / 'out.pth')
    found = {key: tensor.shape for key, tensor in read_checkpoint(tmp_path / 'out.pth')[0].items()}
    assert found == {key: tensor.shape for key, tensor in theirs.items() if not key.startswith('fc.')}


@pytest.mark.parametrize('key', ['backbone.stem.0.conv.weight', 'neck.out_convs.0.conv.weight'])
def test_a_query_encoder_with_fewer_tensors_than_the_key_encoder_is_not_exported(key, make_encoder, save, tmp_path):
    state = make_encoder('rtmdet').state_dict()
    complete = {**state, **{f'encoder_k.{name}': tensor for name, tensor in state.items()}}
    convert(save({**complete, 'encoder_k.image_projector.fc1.bias': torch.zeros(1)}), 'ccop', tmp_path / 'out.pth')
    del complete[key]
    with pytest.raises(InputError, match=rf'1 tensors.*{re.escape(key)}'):
        convert(save(complete), 'ccop', tmp_path / 'other.pth')


def test_a_checkpoint_without_a_backbone_is_not_exported(make_encoder, save, tmp_path):
    state = {key: tensor for key, tensor in make_encoder('rtmdet').state_dict().items() if key.startswith('neck.')}
    with pytest.raises(InputError, match=r'backbone\.'):
        convert(save(state), 'ccop', tmp_path / 'out.pth')
