"""A small CCOP model and batches of random views and boxes."""

import torch
from mmengine.structures import InstanceData
from mmselfsup.structures import SelfSupDataSample


def config(**changes):
    """CCOP with a ResNet-18 small enough for a test."""
    return {
        'type': 'mmselfsup.CCOP',
        'backbone': dict(
            type='mmdet.ResNet', depth=18, base_channels=8, norm_eval=False, frozen_stages=-1, norm_cfg=dict(type='BN')
        ),
        'neck': dict(
            type='mmdet.FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4, norm_cfg=dict(type='BN')
        ),
        'image_projector': dict(type='mmselfsup.ProjectionMLP', in_channels=64, hid_channels=32),
        'object_projector': dict(type='mmselfsup.ProjectionMLP', in_channels=16 * 49, hid_channels=32),
        'queue_len': 64,
        **changes,
    }


def sample(boxes_q, boxes_k):
    data_sample = SelfSupDataSample()
    data_sample.pseudo_label = InstanceData(boxes_q=boxes_q, boxes_k=boxes_k)
    return data_sample


def random_batch(counts, generator, size=96, dtype=torch.float32):
    """Two random views and, for image i, ``counts[i]`` objects."""

    def boxes(count):
        top_left = torch.rand(count, 2, generator=generator) * (size - 40)
        return torch.cat([top_left, top_left + torch.rand(count, 2, generator=generator) * 28 + 12], dim=1)

    views = [torch.randn(len(counts), 3, size, size, generator=generator, dtype=dtype) for _ in range(2)]
    return views, [sample(boxes(count), boxes(count)) for count in counts]
