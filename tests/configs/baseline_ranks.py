"""A step of each baseline on the same global batch, run by test_baseline_configs.py in two gloo processes and in one.

python -m torch.distributed.run --standalone --nproc_per_node=2 baseline_ranks.py OUT    writes OUT/NAME-RANK-of-2.pt
python baseline_ranks.py OUT                                                writes OUT/NAME-0-of-1.pt
"""

import os
import sys
from pathlib import Path

import ccop_mm  # noqa: F401  first: it makes mmselfsup importable

# isort: split
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import init_default_scope
from mmselfsup.registry import MODELS
from mmselfsup.structures import SelfSupDataSample
from torch import nn

from ccop_mm.compat import prepare_config

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'baselines'
SMALL = {
    'mocov2': dict(neck=dict(in_channels=32, hid_channels=16, out_channels=12), queue_len=16, feat_dim=12),
    'densecl': dict(neck=dict(in_channels=32, hid_channels=16, out_channels=12), queue_len=16, feat_dim=12),
    'simclr': dict(neck=dict(in_channels=32, hid_channels=16, out_channels=12)),
    'simsiam': dict(
        neck=dict(in_channels=32, hid_channels=16, out_channels=12),
        head=dict(predictor=dict(in_channels=12, hid_channels=8, out_channels=12)),
    ),
    'byol': dict(
        neck=dict(in_channels=32, hid_channels=16, out_channels=12),
        head=dict(predictor=dict(in_channels=12, hid_channels=8, out_channels=12)),
    ),
}


def build(name):
    """Builds a narrow model of a baseline's config in float64, without batch statistics."""
    init_default_scope('mmselfsup')
    config = Config.fromfile(CONFIGS / f'{name}_r50_800e_coco.py')
    config.merge_from_dict({'model.backbone.depth': 18, 'model.backbone.base_channels': 4})
    config.merge_from_dict(dict(model=SMALL[name]))
    prepare_config(config)
    torch.manual_seed(3)
    model = MODELS.build(config.model).double()
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.eval().train = lambda mode=True, norm=norm: norm  # the number of processes must not matter
    return model


def batch_of(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, 3, 64, 64, generator=generator, dtype=torch.float64) for _ in range(2)]


def run(name, rank, world):
    MessageHub.get_current_instance().update_info('max_iters', 10)
    model = build(name).train()
    wrapped = MMDistributedDataParallel(model, device_ids=None) if world > 1 else model
    mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
    samples = [SelfSupDataSample() for _ in range(8 // world)]
    losses = wrapped([view[mine] for view in batch_of(8)], samples, mode='loss')
    sum(losses.values()).backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return dict(losses=losses, gradients=gradients, buffers={k: v for k, v in model.named_buffers() if 'queue' in k})


def main():
    world = int(os.environ.get('WORLD_SIZE', 1))
    if world > 1:
        dist.init_process_group('gloo')
    rank = int(os.environ.get('RANK', 0))
    for name in SMALL:
        torch.save(run(name, rank, world), f'{sys.argv[1]}/{name}-{rank}-of-{world}.pt')


if __name__ == '__main__':
    torch.set_num_threads(1)
    main()
