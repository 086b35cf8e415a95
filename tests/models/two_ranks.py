"""Two training steps on the same global batch, run by test_key_plan.py in two gloo processes and in one.

python -m torch.distributed.run --nproc_per_node=2 two_ranks.py OUT    writes OUT/CASE-RANK-of-2.pt
python two_ranks.py OUT                                                writes OUT/CASE-0-of-1.pt
"""

import os
import sys

import ccop_mm  # noqa: F401  first: it makes mmselfsup importable

# isort: split
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from mmengine.structures import InstanceData
from mmselfsup.registry import MODELS
from mmselfsup.structures import SelfSupDataSample

SIZE = 96
#: Objects per image of the global batch of 8; the second rank has the last four images.
CASES = {
    'frozen': [3, 0, 2, 5, 1, 4, 0, 2],  # no batch statistics: the number of ranks must not matter
    'shuffled': [3, 0, 2, 5, 1, 4, 0, 2],  # batch statistics; images are shuffled between ranks or groups
    'one_rank_bare': [3, 0, 2, 5, 0, 0, 0, 0],
    'all_bare': [0] * 8,
}


def build(key_batch):
    torch.manual_seed(3)
    model = MODELS.build(
        dict(
            type='mmselfsup.CCOP',
            backbone=dict(type='mmdet.ResNet', depth=18, base_channels=8, norm_eval=False, frozen_stages=-1),
            neck=dict(type='mmdet.FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4),
            image_projector=dict(type='mmselfsup.ProjectionMLP', in_channels=64, hid_channels=32),
            object_projector=dict(type='mmselfsup.ProjectionMLP', in_channels=16 * 49, hid_channels=32),
            queue_len=50,
            key_batch=key_batch,
        )
    ).double()
    # Noise is seeded by rank; here an object must get the same candidates on any rank.
    shifts = torch.linspace(-3, 3, 5, dtype=torch.float64)[None, :, None]

    def jitter(boxes, img_shape, generator):
        candidates = (boxes[:, None] + shifts).clamp(0, SIZE)
        return candidates, torch.ones(candidates.shape[:2], dtype=torch.bool)

    model.box_jitter.jitter = jitter
    return model


def batch_of(counts, seed):
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(len(counts), 3, SIZE, SIZE, generator=generator, dtype=torch.float64) for _ in range(2)]
    samples = []
    for count in counts:
        boxes = []
        for _ in range(2):
            top_left = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 50
            sides = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 28 + 12
            boxes.append(torch.cat([top_left, top_left + sides], dim=1))
        samples.append(SelfSupDataSample())
        samples[-1].pseudo_label = InstanceData(boxes_q=boxes[0], boxes_k=boxes[1])
    return views, samples


def run(case, rank, world):
    model = build({'shuffled': 'auto', 'frozen': 'auto' if world > 1 else 'none'}.get(case, 'auto'))
    model.train(case != 'frozen')
    wrapped = MMDistributedDataParallel(model, device_ids=None) if world > 1 else model
    result = {}
    for step in range(2):  # DDP reports an unused parameter at the second step
        views, samples = batch_of(CASES[case], seed=step)
        mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
        losses = wrapped([view[mine] for view in views], samples[mine], mode='loss')
        wrapped.zero_grad()
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        result[f'losses{step}'] = {name: value.detach() for name, value in losses.items()}
    result['gradients'] = {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    result['image_queue'], result['object_queue'] = model.image_queue.keys, model.object_queue.keys
    return result


def main():
    out = sys.argv[1]
    world = int(os.environ.get('WORLD_SIZE', 1))
    if world > 1:
        dist.init_process_group('gloo')
    rank = int(os.environ.get('RANK', 0))
    for case in CASES:
        torch.save(run(case, rank, world), f'{out}/{case}-{rank}-of-{world}.pt')


if __name__ == '__main__':
    torch.set_num_threads(1)
    main()
