import pytest
import torch
import torch.nn.functional as F
import torchvision
from foreign_states import moco, release
from mmdet.models import FPN, ResNet
from small_transfer import FPN_WIDTH, WIDTH, channels, pretraining

from ccop_mm.errors import InputError
from ccop_mm.version import __version__
from ccop_mm.weights import checksum, convert, read_checkpoint

NORM = {'weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'}


@pytest.fixture
def save(tmp_path):
    """Writes a state dict as pre-training does; returns the path."""

    def save(state, **meta):
        path = tmp_path / 'epoch_800.pth'
        torch.save(dict(meta=meta, state_dict=state, optimizer={}), path)
        return path

    return save


def encoder_state(depth=50):
    return {k: v for k, v in pretraining(depth).state_dict().items() if k.startswith(('backbone.', 'neck.'))}


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('to', ['mmdet', 'torchvision', 'timm', 'detectron2'])
def test_what_is_exported_is_imported_bit_by_bit(save, tmp_path, to, suffix):
    checkpoint = save(pretraining(50).state_dict(), epoch=800, cfg='model = dict()')
    line = convert(checkpoint, to, tmp_path / f'out{suffix}')
    assert f'out{suffix}: ResNet-50' in line and 'epoch 800' in line
    convert(tmp_path / f'out{suffix}', 'mmdet', tmp_path / 'back.pth')
    state, meta = read_checkpoint(tmp_path / 'back.pth')
    expected = encoder_state()
    if to in ('torchvision', 'timm'):
        expected = {key: tensor for key, tensor in expected.items() if key.startswith('backbone.')}
        assert line.endswith('its FPN left out')
    assert set(state) == set(expected)
    assert all(torch.equal(state[key], tensor) and state[key].dtype == tensor.dtype for key, tensor in expected.items())
    # What the pre-training said of itself is handed on.
    assert meta == dict(
        names='mmdet',
        source=f'out{suffix}',
        source_format='torchvision' if to == 'timm' else to,
        encoder_checksum=checksum(expected),
        checksum=checksum(expected),
        ccop_mm=__version__,
        epoch='800',
        config='model = dict()',
    )


def test_torchvision_gives_the_same_c5(save, tmp_path):
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


def detectron2_list(depth_blocks, width, fpn):
    """Names and shapes of detectron2's ResNet-FPN with bottleneck blocks, as its modules nest."""
    shapes = {}

    def conv(name, out, into, side):
        shapes[f'{name}.weight'] = (out, into, side, side)
        shapes.update({f'{name}.norm.{kind}': (out,) if kind != 'num_batches_tracked' else () for kind in NORM})

    conv('backbone.bottom_up.stem.conv1', width, 3, 7)
    into = width
    for stage, blocks in enumerate(depth_blocks):
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
def test_detectron2_finds_its_names_and_shapes(save, tmp_path, depth, blocks):
    convert(save(pretraining(depth).state_dict()), 'detectron2', tmp_path / 'd2.pth')
    # Under 'model', where its checkpointer looks.
    found = torch.load(tmp_path / 'd2.pth', weights_only=True)['model']
    fpn = found['backbone.fpn_lateral2.weight'].shape[0]
    assert {key: tuple(tensor.shape) for key, tensor in found.items()} == detectron2_list(blocks, WIDTH, fpn)


def released_forward(state, image):
    """P2 to P5 of the authors' encoder by the keys of their checkpoint: detectron2's ResNet-50 with stride in the 3x3
    convolution, its FPN with norm layers and nearest upsampling; inference."""

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


def test_the_authors_release_imports_and_computes_the_same(save, tmp_path):
    state = release(pretraining(50).state_dict())
    line = convert(save(state, epoch=800), 'mmdet', tmp_path / 'ccop.pth')
    assert "from the authors' release, epoch 800" in line
    imported = read_checkpoint(tmp_path / 'ccop.pth')[0]
    # Into an encoder of another draw, so that nothing can be there already.
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


def test_mocos_file_imports_its_query_encoder(save, tmp_path):
    expected = {key: tensor for key, tensor in encoder_state().items() if key.startswith('backbone.')}
    line = convert(save(moco(expected)), 'mmdet', tmp_path / 'moco.pth')
    assert 'moco.pth: ResNet-50 under the names of mmdet, 318 tensors' in line and line.endswith('from MoCo v2')
    state = read_checkpoint(tmp_path / 'moco.pth')[0]
    assert set(state) == set(expected) and all(torch.equal(state[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda state: state.pop('backbone_q.bottom_up.res4.5.conv2.norm.bias'),
            'missing in the checkpoint: backbone.layer3.5.bn2.bias',
        ),
        (
            lambda state: state.update({'backbone_q.fpn_lateral3.bias': torch.zeros(32)}),
            'unused of the checkpoint: neck.lateral_convs.1.conv.bias',
        ),
        (
            lambda state: [state.pop(key) for key in [*state] if key.startswith('backbone_q.bottom_up.res5.2.')],
            'its backbone is no whole ResNet-18, -34, -50, -101 or -152',
        ),
        (
            lambda state: state.update({'proposal_generator.anchor': torch.zeros(1)}),
            r'first: proposal_generator.anchor',
        ),
        (lambda state: (state.clear(), state.update(classifier=torch.zeros(1))), 'belong to no part of CCOP'),
    ],
)
def test_a_part_is_not_taken_for_the_whole(save, tmp_path, change, message):
    state = release(pretraining(50).state_dict())
    change(state)
    path = save(state)
    with pytest.raises(InputError, match=f'epoch_800.pth: (?s:.*){message}'):
        convert(path, 'mmdet', tmp_path / 'out.pth')
    assert [file.name for file in tmp_path.iterdir()] == ['epoch_800.pth']


def test_the_checkpoint_itself_is_not_written_over(save):
    path = save(pretraining(18).state_dict())
    before = path.read_bytes()
    with pytest.raises(InputError, match='is the checkpoint itself'):
        convert(path, 'mmdet', path)
    assert path.read_bytes() == before
