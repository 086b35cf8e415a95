"""Plans a training step on the CPU: everything that depends on boxes only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ccop_mm.models.grouped_batch_norm import deinterleave
from ccop_mm.models.key_plan import KeyPlan, plan_keys
from ccop_mm.models.object_pool import ObjectPool, RoIs

#: Byte alignment of each tensor in a packed copy: at least its element size, and suitable for vector loads.
ALIGNMENT = 16


@dataclass(frozen=True)
class ObjectBoxes:
    """The objects of a batch. Row r of every field belongs to the same object; N may be 0.

    Attributes:
        query (Tensor): ``(N, 4)`` xyxy boxes in pixels of the query view.
        key (Tensor): ``(N, 4)`` xyxy boxes in pixels of the key view.
        batch_index (Tensor): ``(N,)`` long, the image of each object.
    """

    query: Tensor
    key: Tensor
    batch_index: Tensor

    @classmethod
    def from_samples(cls, data_samples: list) -> 'ObjectBoxes':
        """Concatenates the ``pseudo_label`` boxes (``boxes_q``, ``boxes_k``) of B data samples on the CPU."""
        labels = [sample.pseudo_label for sample in data_samples]
        counts = torch.tensor([len(label.boxes_q) for label in labels])
        return cls(
            query=torch.cat([label.boxes_q for label in labels]).cpu(),
            key=torch.cat([label.boxes_k for label in labels]).cpu(),
            batch_index=torch.repeat_interleave(torch.arange(len(labels)), counts),
        )

    def __len__(self) -> int:
        return len(self.batch_index)

    def __getitem__(self, rows: Tensor | slice) -> 'ObjectBoxes':
        return ObjectBoxes(self.query[rows], self.key[rows], self.batch_index[rows])


@dataclass(frozen=True)
class StepPlan:
    """Boxes, their pyramid levels and the images' groups of one training step.

    Attributes:
        objects (ObjectBoxes): The N objects of this rank's batch that have a valid candidate.
        valid (Tensor): ``(N, J)`` bool, the candidates that can become the positive key.
        rois_q (RoIs): The query boxes, sorted by pyramid level.
        rois_k (RoIs): The valid candidates of the key images that this rank encodes, sorted by pyramid level;
            ``order`` numbers all ``M * J`` candidates.
        keys (KeyPlan): Which rank and group encodes each key image.
        interleaved (bool): Whether all groups of images are encoded in one pass.
    """

    objects: ObjectBoxes
    valid: Tensor
    rois_q: RoIs
    rois_k: RoIs
    keys: KeyPlan
    interleaved: bool

    def to(self, device: torch.device) -> 'StepPlan':
        """Returns the plan with the tensors that the step needs on ``device``, moved in one non-blocking copy."""
        objects, rois_q, rois_k, keys = self.objects, self.rois_q, self.rois_k, self.keys
        tensors = [self.valid, objects.query, objects.key, objects.batch_index]
        tensors += [rois_q.rows, rois_q.order, rois_k.rows, rois_k.order]
        tensors += [keys.images, keys.image_restore, keys.object_restore]
        valid, query, key, batch_index, rows_q, order_q, rows_k, order_k, *indices = copy_to_device(tensors, device)
        return replace(
            self,
            objects=ObjectBoxes(query, key, batch_index),
            valid=valid,
            rois_q=replace(rois_q, rows=rows_q, order=order_q),
            rois_k=replace(rois_k, rows=rows_k, order=order_k),
            keys=replace(keys, images=indices[0], image_restore=indices[1], object_restore=indices[2]),
        )


def plan_step(
    objects: ObjectBoxes,
    candidates: Tensor,
    valid: Tensor,
    object_pool: ObjectPool,
    batch_size: int,
    step: int,
    key_batch: str,
    bn_group: int,
    can_interleave: bool,
) -> StepPlan:
    """Plans one training step on the CPU, where the number of boxes per level must be known.

    An object without a valid candidate (its key box has no area inside the view) is left out.

    Args:
        objects (ObjectBoxes): The N objects of this rank's batch.
        candidates (Tensor): ``(N, J, 4)``, jittered key boxes (Eq. 7).
        valid (Tensor): ``(N, J)`` bool, the candidates with an IoU of at least beta.
        object_pool (ObjectPool): Assigns boxes to pyramid levels.
        batch_size (int): B, images per rank.
        step (int): Training step; seeds the permutation of the key images.
        key_batch (str): See :func:`ccop_mm.models.key_plan.plan_keys`.
        bn_group (int): See :func:`ccop_mm.models.key_plan.group_sizes`.
        can_interleave (bool): Whether the encoder can process equal groups in one pass.

    Returns:
        StepPlan: All tensors on the CPU.
    """
    usable = valid.any(1)
    objects, candidates, valid = objects[usable], candidates[usable], valid[usable]
    keys = plan_keys(candidates, objects.batch_index, batch_size, key_batch, step, bn_group, valid)
    interleaved = can_interleave and len(set(keys.sizes)) == 1
    # (B,): index of each image in the feature maps
    position = deinterleave(torch.arange(batch_size), len(keys.sizes) if interleaved else 1)
    return StepPlan(
        objects=objects,
        valid=valid,
        rois_q=object_pool.plan(objects.query, position[objects.batch_index]),
        rois_k=_plan_candidates(keys, position, object_pool),
        keys=keys,
        interleaved=interleaved,
    )


def _plan_candidates(keys: KeyPlan, position: Tensor, object_pool: ObjectPool) -> RoIs:
    """Sorts the valid candidates by pyramid level; ``order`` numbers all ``M * J`` candidates."""
    rows = keys.valid.flatten().nonzero().flatten()
    # (M, J, 4) -> (M * J, 4) -> the valid ones; all candidates of an object are in its image
    image = position[keys.batch_index].repeat_interleave(keys.boxes.shape[1])
    rois = object_pool.plan(keys.boxes.flatten(0, 1)[rows], image[rows])
    return replace(rois, order=rows[rois.order])


def copy_to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies several small CPU tensors to ``device`` in one non-blocking transfer.

    Separate copies would launch one transfer each, and a copy from pageable memory blocks the host.

    Args:
        tensors (Sequence[Tensor]): CPU tensors of any types and shapes.
        device (torch.device): Target device.

    Returns:
        list[Tensor]: Views of one buffer on ``device``; for the CPU, the tensors themselves.
    """
    if device.type == 'cpu':
        return list(tensors)
    packed = _pack(tensors, pin_memory=device.type == 'cuda')
    return _unpack(packed.to(device, non_blocking=True), tensors)


def _pack(tensors: Sequence[Tensor], pin_memory: bool) -> Tensor:
    """Copies tensors into one byte buffer."""
    size = sum(_padded_size(tensor) for tensor in tensors)
    packed = torch.empty(size, dtype=torch.uint8, pin_memory=pin_memory)
    for view, tensor in zip(_unpack(packed, tensors), tensors, strict=True):
        view.copy_(tensor)
    return packed


def _unpack(packed: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns views of a byte buffer with the types and shapes of ``tensors``."""
    views, start = [], 0
    for tensor in tensors:
        views.append(packed[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        start += _padded_size(tensor)
    return views


def _padded_size(tensor: Tensor) -> int:
    """Bytes that a tensor takes up in the buffer."""
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
