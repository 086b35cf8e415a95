"""From the host to the device in one copy."""

from collections.abc import Sequence

import torch
from torch import Tensor

#: Every tensor starts at a multiple of this many bytes, as its type asks for and vector loads like.
ALIGNMENT = 16


def copy_to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Small tensors on the CPU, whatever their types and shapes, on a device: by one copy that nobody waits for.

    A copy each would cost a launch each, and one from memory that is not page-locked makes the host wait.

    Args:
        tensors (Sequence[Tensor]): On the CPU.
        device (torch.device): Where they shall be.

    Returns:
        list[Tensor]: Views of one buffer; on the CPU the tensors as they came.
    """
    if device.type == 'cpu':
        return list(tensors)
    packed = _pack(tensors, pin_memory=device.type == 'cuda')
    return _unpack(packed.to(device, non_blocking=True), tensors)


def _pack(tensors: Sequence[Tensor], pin_memory: bool) -> Tensor:
    size = sum(_padded(tensor) for tensor in tensors)
    packed = torch.empty(size, dtype=torch.uint8, pin_memory=pin_memory)
    for place, tensor in zip(_unpack(packed, tensors), tensors, strict=True):
        place.copy_(tensor)
    return packed


def _unpack(packed: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of the buffer, of the types and shapes of the given tensors."""
    views, start = [], 0
    for tensor in tensors:
        views.append(packed[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        start += _padded(tensor)
    return views


def _padded(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
