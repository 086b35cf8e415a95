"""CCOP with other encoders than a ResNet with an FPN: what is trained, saved and restored."""

import pytest
import torch
from mmcv.cnn.bricks import DropPath
from mmengine.registry import DefaultScope
from mmselfsup.registry import MODELS
from small_ccop import config, random_batch
from torch import nn

RETINANET_NECK = dict(
    type='mmdet.FPN',
    in_channels=[8, 16, 32, 64],
    out_channels=16,
    start_level=1,
    add_extra_convs='on_output',
    num_outs=5,
    norm_cfg=dict(type='BN'),
)
RTMDET = dict(
    backbone=dict(type='mmdet.CSPNeXt', deepen_factor=0.167, widen_factor=0.125, norm_cfg=dict(type='BN')),
    neck=dict(type='mmdet.CSPNeXtPAFPN', in_channels=[32, 64, 128], out_channels=24, num_csp_blocks=1),
    image_projector=dict(type='mmselfsup.ProjectionMLP', in_channels=128, hid_channels=32),
    object_projector=dict(type='mmselfsup.ProjectionMLP', in_channels=24 * 49, hid_channels=32),
)
YOLOV3 = dict(
    backbone=dict(type='mmdet.Darknet', depth=53, out_indices=(3, 4, 5)),
    neck=dict(type='mmdet.YOLOV3Neck', num_scales=3, in_channels=[1024, 512, 256], out_channels=[512, 256, 128]),
    image_projector=dict(type='mmselfsup.ProjectionMLP', in_channels=1024, hid_channels=32),
    object_projector=dict(type='mmselfsup.ProjectionMLP', in_channels=256 * 49, hid_channels=32),
)
SWIN = dict(
    backbone=dict(type='mmdet.SwinTransformer', embed_dims=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4),
                  drop_path_rate=0.5, drop_rate=0.3),
    neck=dict(type='mmdet.FPN', in_channels=[12, 24, 48, 96], out_channels=16, num_outs=5),
    image_projector=dict(type='mmselfsup.ProjectionMLP', in_channels=96, hid_channels=32),
)  # fmt: skip


def build(**changes):
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        model = MODELS.build(config(**changes))
        model.init_weights()
    return model.train()


def step(model, generator, size=96):
    """Computes the gradients of one step; returns the losses."""
    losses = model.loss(*random_batch([3, 2, 0, 3], generator, size))
    sum(value for name, value in losses.items() if name.startswith('loss')).backward()
    return losses


@pytest.mark.parametrize(
    'changes, strides',
    [
        (dict(neck=RETINANET_NECK), (8, 16, 32)),
        (dict(neck=RETINANET_NECK, object_pool=dict(strides=(8, 16))), (8, 16)),
        (RTMDET, (8, 16, 32)),
        (YOLOV3, (8, 16, 32)),
        (SWIN, (4, 8, 16, 32)),
    ],
    ids=['RetinaNet', 'RetinaNet, two levels', 'RTMDet', 'YOLOv3', 'Swin'],
)
@pytest.mark.slow
def test_every_trained_parameter_gets_a_gradient(generator, changes, strides):
    """Distributed training would hang otherwise; parameters without a gradient are not in the checkpoint."""
    torch.manual_seed(0)
    model = build(**changes)
    assert [round(1 / layer.spatial_scale) for layer in model.object_pool.layers] == list(strides)
    assert model.object_pool.level_sides == tuple(12.0 * stride for stride in strides[:-1])
    losses = step(model, generator)
    assert all(torch.isfinite(value) for value in losses.values())
    query = {name: value for name, value in model.named_parameters() if not name.startswith('encoder_k.')}
    assert {name for name, value in query.items() if value.requires_grad} == {
        name for name, value in query.items() if value.grad is not None
    }
    saved = model.state_dict()
    assert {name for name, value in query.items() if not value.requires_grad} == query.keys() - saved.keys()
    key_names = {f'encoder_k.{name}' for name in query if name in saved and 'queue' not in name}
    assert key_names <= saved.keys()


def test_untrained_levels_are_neither_saved_nor_changed_by_a_checkpoint():
    torch.manual_seed(0)
    model, other = build(neck=RETINANET_NECK), build(neck=RETINANET_NECK)
    saved = model.state_dict()
    levels = {key.split('.')[2] for key in saved if key.startswith('neck.fpn_convs')}
    assert levels == {'0', '1', '2'}
    assert not any('fpn_convs.3' in key or 'fpn_convs.4' in key for key in saved), 'also those of the key encoder'
    before = {name: value.clone() for name, value in other.named_parameters()}
    other.load_state_dict(saved)
    for name, value in other.named_parameters():
        kept = any(f'neck.fpn_convs.{level}.' in name for level in (3, 4))
        assert torch.equal(value, before[name] if kept else saved[name])
    optimizer = torch.optim.SGD([value for value in other.parameters() if value.requires_grad], 0.1, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    step(other, generator)
    optimizer.step()
    for name in other.untrained:
        if name in dict(other.named_parameters()):
            assert torch.equal(other.get_parameter(name), before[name])


def test_untrained_tensors_in_a_checkpoint_are_loaded():
    """Checkpoints of models that pool from all levels contain them."""
    full = build(neck=RETINANET_NECK, object_pool=dict(strides=(8, 16, 32, 64, 128)))
    assert full.untrained == ()
    model = build(neck=RETINANET_NECK)
    assert model.load_state_dict(full.state_dict()) == ([], [])
    assert torch.equal(
        model.get_parameter('neck.fpn_convs.4.conv.weight'), full.get_parameter('neck.fpn_convs.4.conv.weight')
    )


def test_missing_keys_are_still_reported():
    model = build(neck=RETINANET_NECK)
    state = model.state_dict()
    del state['neck.fpn_convs.2.conv.weight']
    with pytest.raises(RuntimeError, match=r'neck\.fpn_convs\.2\.conv\.weight'):
        model.load_state_dict(state)


@pytest.mark.parametrize('neck, match', [(None, '4, 8, 16, 32'), (RETINANET_NECK, '8, 16, 32, 64, 128')])
def test_unknown_strides(neck, match):
    with pytest.raises(ValueError, match=rf'strides.*{match}'):
        build(object_pool=dict(strides=(2, 16)), **({} if neck is None else dict(neck=neck)))


def test_chain_of_necks():
    first = config()['neck']
    model = build(neck=[first, dict(type='mmdet.BFP', in_channels=16, num_levels=4, refine_level=1)])
    assert any(key.startswith('neck.0.fpn_convs.3') for key in model.state_dict())
    assert len(model.extract_feat(torch.zeros(1, 3, 64, 64))) == 4


def test_levels_with_different_channels_have_projections_in_both_encoders():
    model = build(**YOLOV3)
    keys = {key for key in model.state_dict() if 'level_projector' in key}
    assert keys == {
        f'{encoder}level_projector.convs.{level}.{name}'
        for encoder in ('', 'encoder_k.')
        for level in range(3)
        for name in ('weight', 'bias')
    }
    levels = model.extract_feat(torch.zeros(1, 3, 64, 64))
    assert [tuple(level.shape[1:]) for level in levels] == [(256, 8, 8), (256, 4, 4), (256, 2, 2)]


def test_keys_do_not_depend_on_dropout(generator):
    model = build(**SWIN)
    kinds = (nn.Dropout, DropPath)
    drops = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    parts = tuple(f'encoder_k.{part}.' for part in ('backbone', 'neck'))
    assert any(isinstance(module, DropPath) and module.drop_prob for module in drops.values())
    for _ in range(2):  # also after a validation
        assert {name for name, module in drops.items() if not module.training} == {
            name for name in drops if name.startswith(parts)
        }
        model.eval()
        model.train()
    images = torch.randn(2, 3, 64, 64, generator=generator)
    keys = [model.encoder_k.backbone(images)[-1] for _ in range(2)]
    queries = [model.backbone(images)[-1] for _ in range(2)]
    assert torch.equal(*keys) and not torch.equal(*queries)


@pytest.mark.parametrize('key_batch, expected', [('auto', 'none'), ('split', 'split')])
def test_key_images_stay_in_place_without_batch_normalization(key_batch, expected):
    assert build(**SWIN, key_batch=key_batch).key_batch == expected
    assert build(key_batch=key_batch).key_batch == key_batch
