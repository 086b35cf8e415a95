import hashlib
import re
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import initialize
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader

from ccop_mm.utils.errors import InputError
from ccop_mm.weights import checksum, convert

FPN_NORM = dict(type='BN')
CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
MASK_RCNN = CONFIGS / 'transfer/mask_rcnn/mask-rcnn_r18-fpn_ccop-demo.py'
RETINANET = dict(
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor'),
    backbone=dict(type='ResNet', depth=18, norm_eval=False),
    neck=dict(
        type='FPN',
        in_channels=[64, 128, 256, 512],
        out_channels=128,
        start_level=1,
        add_extra_convs='on_input',
        num_outs=5,
        norm_cfg=FPN_NORM,
    ),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=3,
        in_channels=128,
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=3,
            ratios=[1.0],
            strides=[8, 16, 32, 64, 128],
        ),
    ),
)


@pytest.fixture(scope='module', autouse=True)
def scope():
    """Sets mmdet's default scope for the tests of this file, as its Runner does."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


class Encoder(torch.nn.Module):
    """Encoder that CCOP pre-trains: a ResNet and an FPN that starts at C2, all tensors random, statistics included."""

    def __init__(self, depth=18):
        super().__init__()
        channels = [64, 128, 256, 512] if depth < 50 else [256, 512, 1024, 2048]
        self.backbone = MODELS.build(dict(type='mmdet.ResNet', depth=depth))
        self.neck = MODELS.build(
            dict(type='mmdet.FPN', in_channels=channels, out_channels=128, num_outs=4, norm_cfg=FPN_NORM)
        )
        generator = torch.Generator().manual_seed(depth)
        for tensor in self.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.05)
            else:
                tensor.fill_(800)

    def forward(self, images):
        return self.neck(self.backbone(images))


@pytest.fixture(scope='module')
def encoder():
    return Encoder().eval()


@pytest.fixture
def write(encoder, tmp_path):
    """Saves a checkpoint as a pre-training run does, after a change to its state dict; returns its path."""

    def write(change=lambda state: None, state=None):
        state = dict(encoder.state_dict() if state is None else state)
        state['encoder_k.backbone.conv1.weight'] = torch.zeros(64, 3, 7, 7)
        state['encoder_k._extra_state'] = torch.tensor(5)
        for queue in ('image_queue', 'object_queue'):
            state.update({f'{queue}.keys': torch.rand(128, 4), f'{queue}.pointer': torch.zeros(1)})
        state.update({f'{kind}_projector.fc1.bias': torch.zeros(4) for kind in ('image', 'object')})
        change(state)
        path = tmp_path / 'epoch_800.pth'
        torch.save(dict(meta=dict(epoch=800), state_dict=state, optimizer={}), path)
        return str(path)

    return write


def build(checkpoint, model=None, **changes):
    """Builds and initializes a detector like mmengine's Runner."""
    cfg = Config(dict(model=model)) if model else Config.fromfile(MASK_RCNN)
    cfg.merge_from_dict({'model.init_cfg': dict(type='CCOPPretrained', checkpoint=checkpoint), **changes})
    detector = MODELS.build(cfg.model)
    detector.init_weights()
    return detector


@pytest.fixture(scope='module')
def detector():
    """Builds the Mask R-CNN of the demo without initializing it."""
    return MODELS.build(Config.fromfile(MASK_RCNN).model)


def pyramids(detector, encoder):
    """Computes the FPN levels of the same images with a detector and with the encoder of its checkpoint."""
    images = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return detector.eval().extract_feat(images), encoder(images)


def test_mask_rcnn_loads_backbone_and_fpn_bit_by_bit(write, encoder):
    detector = build(write())
    state, source = detector.state_dict(), encoder.state_dict()
    parts = {key for key in state if key.startswith(('backbone.', 'neck.'))}
    assert parts == set(source)
    assert all(torch.equal(state[key], source[key]) and state[key].dtype == source[key].dtype for key in parts)
    found, expected = pyramids(detector, encoder)
    assert all(torch.equal(found[level], expected[level]) for level in range(4))


def test_mask_rcnn_loads_a_checkpoint_of_ccop(tmp_path):
    cfg = Config.fromfile(CONFIGS / 'ccop/ccop_r18_fpn_demo.py')
    cfg.model.update(queue_len=8, object_queue_len=8)
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        ccop = MODELS.build(cfg.model)
        ccop.init_weights()
    path = tmp_path / 'epoch_30.pth'
    torch.save(dict(state_dict=ccop.state_dict()), path)
    found, expected = pyramids(build(str(path)), ccop.eval().extract_feat)
    assert all(torch.equal(found[level], expected[level]) for level in range(4))


def test_heads_keep_their_own_initialization(write):
    """mmdet initializes the classifier of the box head from N(0, 0.01) and its bias to 0."""
    head = build(write()).roi_head.bbox_head.fc_cls
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert head.bias.abs().max() == 0


def test_retinanet_loads_the_levels_from_p3_upward(write, encoder):
    detector = build(write(), RETINANET)
    found, expected = pyramids(detector, encoder)
    for level in range(3):
        assert torch.equal(found[level], expected[level + 1])
    # The extra convolutions have no source and keep the FPN's initialization: Xavier uniform, fans 512 * 9 and 128 * 9.
    bound = (6 / (9 * (512 + 128))) ** 0.5
    extra = detector.neck.fpn_convs[3].conv.weight
    assert 0.99 * bound < extra.abs().max() <= bound
    assert extra.mean().abs() < 0.01 * bound


def test_an_fpn_that_starts_at_c3_through_out_indices_loads_the_same_levels(write, encoder):
    model = dict(RETINANET, backbone=dict(RETINANET['backbone'], out_indices=(1, 2, 3)))
    model['neck'] = dict(RETINANET['neck'], in_channels=[128, 256, 512], start_level=0)
    found, expected = pyramids(build(write(), model), encoder)
    assert all(torch.equal(found[level], expected[level + 1]) for level in range(3))


@pytest.mark.parametrize('own', [dict(type='Pretrained', checkpoint='torchvision://resnet18', _delete_=True), None])
def test_initializers_of_children_neither_overwrite_weights_nor_download(write, encoder, monkeypatch, own):
    load = CheckpointLoader.load_checkpoint

    def offline(filename, *args, **kwargs):
        assert '://' not in filename
        return load(filename, *args, **kwargs)

    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint', offline)
    constant = dict(type='Constant', layer='Conv2d', val=7.0)
    detector = build(write(), **{'model.backbone.init_cfg': own, 'model.neck.init_cfg': constant})
    detector.init_weights()  # a second call must not change the weights
    state = detector.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in encoder.state_dict().items())


def test_a_neck_whose_own_initialization_leaves_no_mark_is_not_initialized_again(write, encoder, monkeypatch):
    """mmengine calls ``init_weights`` of the children afterwards unless ``is_init`` is set."""
    calls = []

    def init_weights(neck):
        calls.append(neck)
        for parameter in neck.parameters():
            parameter.data.zero_()

    monkeypatch.setattr('mmdet.models.FPN.init_weights', init_weights)
    state = build(write()).state_dict()
    assert len(calls) == 1
    assert all(torch.equal(state[key], tensor) for key, tensor in encoder.state_dict().items())


def test_the_log_line_states_what_was_loaded(write, encoder, monkeypatch):
    lines = []
    monkeypatch.setattr('ccop_mm.weights.pretrained.print_log', lambda line, logger: lines.append(line))
    path = write()
    build(path)
    digest = hashlib.blake2b(digest_size=8)
    for key, tensor in sorted(encoder.state_dict().items()):
        digest.update(f'{key} {tensor.dtype} {tuple(tensor.shape)}\n'.encode() + tensor.numpy().tobytes())
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    assert lines == [
        f'CCOPPretrained: {len(encoder.state_dict())} backbone and neck keys ({parameters:,} parameters, '
        f'blake2b {digest.hexdigest()}) loaded from {path} into MaskRCNN'
    ]


def test_keys_of_wrapped_models_load(write, encoder):
    wrapped = {f'module._orig_mod.{key}': tensor for key, tensor in encoder.state_dict().items()}
    state = build(write(lambda state: (state.clear(), state.update(wrapped)))).state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in encoder.state_dict().items())


def test_a_bare_state_dict_loads(encoder, tmp_path):
    path = tmp_path / 'export.pth'
    torch.save(encoder.state_dict(), path)
    assert torch.equal(build(str(path)).backbone.conv1.weight, encoder.backbone.conv1.weight)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda state: state.pop('backbone.bn1.running_var'), r'missing.*: backbone\.bn1\.running_var\b'),
        (
            lambda state: state.pop('neck.lateral_convs.2.bn.num_batches_tracked'),
            r'missing.*: neck\.lateral_convs\.2\.bn\.num_batches_tracked',
        ),
        (
            lambda state: state.update({'neck.fpn_convs.0.conv.bias': torch.zeros(128)}),
            r'not used.*: neck\.fpn_convs\.0\.conv\.bias',
        ),
        (
            lambda state: state.update({'neck.fpn_convs.0.conv.weight': torch.zeros(128, 128, 1, 1)}),
            r'neck\.fpn_convs\.0\.conv\.weight.*\(128, 128, 1, 1\).*\(128, 128, 3, 3\)',
        ),
        (lambda state: state.update({'rpn_head.rpn_conv.bias': torch.zeros(1)}), r'rpn_head\.rpn_conv\.bias'),
        (lambda state: state.update({'fc.weight': torch.zeros(1)}), r'1 of \d+ keys.*fc\.weight'),
        (lambda state: state.update({'backbone.conv1.weight': 'a string'}), 'state dict'),
        (
            lambda state: state.update({'neck.fpn_convs.1.bn.weight': torch.full((128,), float('nan'))}),
            r'1 of \d+ tensors.*neck\.fpn_convs\.1\.bn\.weight',
        ),
    ],
)
def test_a_mismatched_checkpoint_changes_nothing(write, detector, change, message):
    path = write(change)
    before = checksum(detector.state_dict())
    with pytest.raises(InputError, match=f'{re.escape(path)}(?s:.*){message}'):
        initialize(detector, dict(type='CCOPPretrained', checkpoint=path))
    assert checksum(detector.state_dict()) == before


def test_another_depth_is_an_error_of_one_line(write, detector):
    path = write(state=Encoder(34).state_dict())
    with pytest.raises(InputError, match='ResNet-34.*ResNet-18') as caught:
        initialize(detector, dict(type='CCOPPretrained', checkpoint=path))
    assert len(str(caught.value).splitlines()) == 1


def test_ccop_pretrained_only_initializes_a_detector(detector):
    with pytest.raises(InputError, match=r'CCOPPretrained.*\bnot ResNet\b'):
        initialize(detector.backbone, dict(type='CCOPPretrained', checkpoint='any.pth'))


@pytest.mark.parametrize(('to', 'suffix'), [('ccop', '.safetensors'), ('detectron2', '.pth')])
def test_an_export_loads_like_the_checkpoint(write, encoder, tmp_path, to, suffix):
    out = tmp_path / f'export{suffix}'
    convert(write(), to, out)
    state = build(str(out)).state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in encoder.state_dict().items())


def backbone_state(encoder):
    """Returns the backbone's tensors with torchvision's keys."""
    return {
        key.removeprefix('backbone.'): tensor
        for key, tensor in encoder.state_dict().items()
        if key.startswith('backbone.')
    }


@pytest.fixture
def resnet(encoder, tmp_path):
    """Saves a ResNet as torchvision does, after a change to its state dict; returns its path."""

    def write(change=lambda state: None, source=encoder):
        state = {**backbone_state(source), 'fc.weight': torch.ones(1000, 512), 'fc.bias': torch.ones(1000)}
        change(state)
        path = tmp_path / 'resnet.pth'
        torch.save(state, path)
        return str(path)

    return write


def build_from_backbone(checkpoint):
    return build(None, **{'model.init_cfg': dict(type='BackbonePretrained', checkpoint=checkpoint)})


def test_a_backbone_loads_completely_and_the_rest_keeps_its_initialization(resnet, encoder, monkeypatch):
    lines = []
    monkeypatch.setattr('ccop_mm.weights.pretrained.print_log', lambda line, logger: lines.append(line))
    path = resnet()
    detector = build_from_backbone(path)
    state, source = detector.state_dict(), encoder.state_dict()
    parts = [key for key in source if key.startswith('backbone.')]
    assert all(torch.equal(state[key], source[key]) for key in parts)
    # The FPN keeps mmdet's initialization: Xavier uniform, 1x1 from 64 to 128 channels.
    lateral = detector.neck.lateral_convs[0].conv.weight
    bound = (6 / (64 + 128)) ** 0.5
    assert 0.95 * bound < lateral.abs().max() <= bound
    parameters = sum(parameter.numel() for parameter in encoder.backbone.parameters())
    digest = checksum({key: source[key] for key in parts})
    assert lines == [
        f'BackbonePretrained: {len(parts)} backbone keys ({parameters:,} parameters, blake2b {digest}) '
        f'loaded from {path} into MaskRCNN'
    ]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda state: state.pop('layer3.1.bn2.bias'), r'missing.*: backbone\.layer3\.1\.bn2\.bias'),
        (
            lambda state: state.update({'layer3.1.conv2.bias': torch.zeros(256)}),
            r'not used.*: backbone\.layer3\.1\.conv2\.bias',
        ),
        (
            lambda state: state.update({'conv1.weight': torch.zeros(64, 3, 3, 3)}),
            r'backbone\.conv1\.weight.*\(64, 3, 3, 3\).*\(64, 3, 7, 7\)',
        ),
        (
            lambda state: state.update({'avgpool.weight': torch.zeros(1)}),
            r'1 of 123 keys.*avgpool\.weight',
        ),
        (
            lambda state: state.update({'layer1.0.bn1.running_mean': torch.full((64,), float('inf'))}),
            r'1 of \d+ tensors.*layer1\.0\.bn1\.running_mean',
        ),
    ],
)
def test_a_mismatched_backbone_changes_nothing(resnet, detector, change, message):
    path = resnet(change)
    before = checksum(detector.state_dict())
    with pytest.raises(InputError, match=f'{re.escape(path)}(?s:.*){message}'):
        initialize(detector, dict(type='BackbonePretrained', checkpoint=path))
    assert checksum(detector.state_dict()) == before


def test_a_backbone_of_another_depth_is_an_error_of_one_line(resnet, detector):
    path = resnet(source=Encoder(34))
    with pytest.raises(InputError, match='ResNet-34.*ResNet-18') as caught:
        initialize(detector, dict(type='BackbonePretrained', checkpoint=path))
    assert len(str(caught.value).splitlines()) == 1


def test_an_unexpected_or_missing_fpn_is_an_error(write, resnet, detector):
    with pytest.raises(InputError, match=r"epoch_800\.pth.*FPN.*type='CCOPPretrained'"):
        initialize(detector, dict(type='BackbonePretrained', checkpoint=write()))
    with pytest.raises(InputError, match=r"resnet\.pth.*FPN.*type='BackbonePretrained'"):
        initialize(detector, dict(type='CCOPPretrained', checkpoint=resnet()))


@pytest.mark.parametrize('kind', ['CCOPPretrained', 'BackbonePretrained'])
def test_a_detection_checkpoint_and_a_missing_path_are_errors(kind, write, detector):
    path = write(lambda state: state.update({'roi_head.bbox_head.fc_cls.bias': torch.zeros(1)}))
    with pytest.raises(InputError, match=r'epoch_800\.pth.*roi_head\.bbox_head\.fc_cls\.bias.*load_from'):
        initialize(detector, dict(type=kind, checkpoint=path))
    with pytest.raises(InputError, match=rf'{kind}.*None.*model\.init_cfg\.checkpoint'):
        initialize(detector, dict(type=kind, checkpoint=None))


def test_backbone_pretrained_only_initializes_a_detector(detector):
    with pytest.raises(InputError, match=r'BackbonePretrained.*\bnot ResNet\b'):
        initialize(detector.backbone, dict(type='BackbonePretrained', checkpoint='any.pth'))
