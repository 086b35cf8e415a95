import copy

import pytest
import torch
from mmselfsup.registry import MODELS
from torch import nn

from ccop_mm.models import encoder
from ccop_mm.models.grouped_batch_norm import GroupedBatchNorm2d, deinterleave
from ccop_mm.models.level_projector import LevelProjector
from ccop_mm.models.object_pool import ObjectPool


class SmallEncoder(nn.Module):
    """Two levels at strides 4 and 8, with batch normalization in every image module."""

    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.neck = Neck()
        self.image_projector = MODELS.build(
            dict(type='mmselfsup.ProjectionMLP', in_channels=6, hid_channels=5, out_channels=4)
        )
        self.object_projector = MODELS.build(
            dict(type='mmselfsup.ProjectionMLP', in_channels=3 * 49, hid_channels=5, out_channels=4)
        )
        self.level_projector = LevelProjector((0, 1), (3, 3), 3)
        GroupedBatchNorm2d.convert(self)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.BatchNorm2d(4))
        self.stage = nn.Sequential(nn.Conv2d(4, 6, 2, stride=2), nn.BatchNorm2d(6))

    def forward(self, images):
        fine = self.stem(images)
        return fine, self.stage(fine)


class Neck(nn.Module):
    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(4, 3, 1), nn.Conv2d(6, 3, 1)

    def forward(self, features):
        return self.fine(features[0]), self.coarse(features[1])


@pytest.fixture
def small():
    torch.manual_seed(0)
    return SmallEncoder().double().train()


@pytest.mark.parametrize('interleaved', [True, False])
def test_encode_images_equals_one_pass_per_group(small, interleaved, generator):
    images = torch.randn(6, 3, 32, 32, generator=generator, dtype=torch.float64)
    reference = copy.deepcopy(small)
    embeddings, pyramid = encoder.encode_images(small, images, [3, 3], interleaved)
    if interleaved:
        pyramid = tuple(deinterleave(level, 2) for level in pyramid)
    for start in (0, 3):
        features = reference.backbone(images[start : start + 3])
        expected = reference.image_projector(features[-1].mean(dim=(2, 3)))
        torch.testing.assert_close(embeddings[start : start + 3], expected)
        for level, wanted in zip(pyramid, reference.neck(features), strict=True):
            torch.testing.assert_close(level[start : start + 3], wanted)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(6, dtype=torch.float64))


def test_interleaving_requires_contiguous_memory_and_grouped_layers(small):
    assert encoder.supports_interleaving(small, torch.contiguous_format)
    assert not encoder.supports_interleaving(small, torch.channels_last)
    small.neck.add_module('norm', nn.SyncBatchNorm(3))
    assert not encoder.supports_interleaving(small, torch.contiguous_format)


@pytest.mark.parametrize('max_rois', [1, 3, 1000])
def test_embed_objects_returns_rows_in_the_order_of_the_boxes(small, max_rois, generator, monkeypatch):
    monkeypatch.setattr(encoder, 'MAX_POOLED_ROIS', max_rois)
    pool = ObjectPool(strides=(4, 8), level_sides=(14,))
    images = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    boxes = torch.tensor([[2.0, 2, 30, 30], [4, 4, 12, 12], [0, 0, 20, 28], [10, 10, 20, 20]], dtype=torch.float64)
    batch_index = torch.tensor([0, 0, 1, 1])
    with torch.no_grad():
        _, pyramid = encoder.encode_images(small.eval(), images, [2], False)
        rois = pool.plan(boxes, batch_index)
        rows = torch.tensor([4, 0, 3, 1])  # output rows 2 and 5 belong to no box
        embeddings = encoder.embed_objects(
            small, pool, pyramid, type(rois)(rois.rows, rows[rois.order], rois.counts), num_rows=6
        )
        for row, box, image in zip(rows.tolist(), boxes, batch_index.tolist(), strict=True):
            single = pool.plan(box[None], torch.tensor([image]))
            expected = small.object_projector(pool(pyramid, single))[0]
            torch.testing.assert_close(embeddings[row], expected)
    assert not embeddings[[2, 5]].any()


def test_embed_objects_keeps_gradients_of_all_levels_without_boxes(small, generator):
    images = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    _, pyramid = encoder.encode_images(small, images, [2], False)
    pool = ObjectPool(strides=(4, 8), level_sides=(14,))
    rois = pool.plan(torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.long))
    embeddings = encoder.embed_objects(small, pool, pyramid, rois, num_rows=0)
    assert embeddings.shape == (0, 4)
    embeddings.sum().backward()
    assert all(parameter.grad is not None for parameter in small.neck.parameters())
    assert all(parameter.grad is not None for parameter in small.object_projector.parameters())
