from dataclasses import fields, is_dataclass

import pytest
import torch

from ccop_mm.models.object_pool import ObjectPool
from ccop_mm.models.step_plan import ObjectBoxes, _pack, _unpack, copy_to_device, plan_step

TENSORS = [
    torch.tensor([True, False, True]),
    torch.arange(5),
    torch.rand(2, 3, 4, dtype=torch.float64),
    torch.zeros(0, 5),
    torch.tensor(7, dtype=torch.int16),
    torch.rand(6, 2).T,  # not contiguous
]


def test_cpu_tensors_are_returned_as_they_are():
    moved = copy_to_device(TENSORS, torch.device('cpu'))
    assert all(a is b for a, b in zip(moved, TENSORS, strict=True))


def test_packing_keeps_types_shapes_and_values():
    packed = _pack(TENSORS, pin_memory=False)
    for view, tensor in zip(_unpack(packed, TENSORS), TENSORS, strict=True):
        assert view.dtype == tensor.dtype and torch.equal(view, tensor)
        assert view.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()


def test_copy_to_another_device_keeps_types_and_shapes():
    moved = copy_to_device(TENSORS, torch.device('meta'))  # shapes without values
    assert [(view.shape, view.dtype) for view in moved] == [(tensor.shape, tensor.dtype) for tensor in TENSORS]


def objects_of(counts, generator):
    """Random boxes of images with ``counts`` objects, and four candidates of each."""
    batch_index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    corners = torch.rand(2, len(batch_index), 2, generator=generator) * 100
    sides = torch.rand(2, len(batch_index), 2, generator=generator) * 100 + 10
    query, key = torch.cat([corners, corners + sides], dim=2)
    candidates = key[:, None] + torch.tensor([0.0, 1, 2, 3])[None, :, None]
    return ObjectBoxes(query, key, batch_index), candidates


def plan_of(objects, candidates, valid, batch_size, can_interleave=True, key_batch='split', bn_group=2):
    return plan_step(
        objects, candidates, valid, ObjectPool(), batch_size, 5, key_batch, bn_group, can_interleave=can_interleave
    )


@pytest.mark.parametrize('can_interleave', [True, False])
@pytest.mark.parametrize('counts', [[2, 0, 3, 1], [2, 0, 3, 1, 2], [0, 0]])
def test_plan_assigns_every_box_to_its_image_and_level(counts, can_interleave, generator):
    objects, candidates = objects_of(counts, generator)
    valid = torch.rand(len(objects), 4, generator=generator) < 0.6
    if len(objects):
        valid[0] = False  # an object without a valid candidate is left out
        valid[1:, 0] = True
    plan = plan_of(objects, candidates, valid, len(counts), can_interleave)
    usable = valid.any(1)
    assert torch.equal(plan.objects.query, objects.query[usable])
    assert torch.equal(plan.objects.key, objects.key[usable])
    assert torch.equal(plan.valid, valid[usable])
    num_groups = len(plan.keys.sizes)
    assert plan.interleaved == (can_interleave and len(set(plan.keys.sizes)) == 1)
    # Position of each image in the feature maps: image b of group g, with n images per group, is at b * num_groups + g.
    per_group = len(counts) // num_groups
    position = [
        (image % per_group) * num_groups + image // per_group if plan.interleaved else image
        for image in range(len(counts))
    ]
    pool = ObjectPool()
    assert plan.rois_q.counts == torch.bincount(pool.levels(plan.objects.query), minlength=4).tolist()
    for row, order in zip(plan.rois_q.rows, plan.rois_q.order.tolist(), strict=True):
        assert torch.equal(row[1:], plan.objects.query[order])
        assert row[0] == position[plan.objects.batch_index[order]]
    taken = plan.keys.images.tolist()  # key images in the order in which they are encoded
    numbers = plan.valid.flatten().nonzero().flatten().tolist()
    assert sorted(plan.rois_k.order.tolist()) == numbers
    for row, order in zip(plan.rois_k.rows, plan.rois_k.order.tolist(), strict=True):
        assert torch.equal(row[1:], candidates[usable].flatten(0, 1)[order])
        image = plan.objects.batch_index[order // 4].item()
        assert row[0] == position[taken.index(image)]


def tensors_of(value, prefix=''):
    """All tensors of nested dataclasses, by dotted name."""
    if torch.is_tensor(value):
        return {prefix: value}
    if not is_dataclass(value):
        return {}
    return {
        name: tensor
        for field in fields(value)
        for name, tensor in tensors_of(getattr(value, field.name), f'{prefix}.{field.name}').items()
    }


def test_plan_moves_what_the_step_indexes_with(generator):
    objects, candidates = objects_of([2, 0, 3, 1], generator)
    plan = plan_of(objects, candidates, torch.ones(6, 4, dtype=torch.bool), 4)
    moved = plan.to(torch.device('meta'))
    before, after = tensors_of(plan), tensors_of(moved)
    on_cpu = {name for name, tensor in after.items() if tensor.device.type == 'cpu'}
    assert on_cpu == {'.keys.boxes', '.keys.valid', '.keys.batch_index'}  # used to plan the step only
    assert all(before[name].shape == after[name].shape for name in before)
    assert all(before[name].dtype == after[name].dtype for name in before)
    assert moved.rois_q.counts == plan.rois_q.counts and moved.keys.sizes == plan.keys.sizes
    same = plan.to(torch.device('cpu'))
    assert all(tensors_of(same)[name] is tensor for name, tensor in before.items())
