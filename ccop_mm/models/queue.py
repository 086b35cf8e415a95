"""First-in, first-out queue of negative key embeddings."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Ratio of the paper's image queue to an epoch of COCO train2017: 65,536 keys for 118,287 images.
EPOCH_RATIO = 65536 / 118287


def suggest_lengths(num_images: int, objects_per_image: float) -> tuple[int, int]:
    """Suggests the lengths of the image queue and the object queue for a dataset.

    A queue that spans more than one epoch contains earlier keys of the same image as negatives. The suggested lengths
    have the same ratio to an epoch as the paper's image queue on COCO and are at most the paper's 65,536.

    Args:
        num_images (int): Number of images in the dataset.
        objects_per_image (float): Mean number of objects that are used per image in one iteration.

    Returns:
        tuple[int, int]: Lengths of the image queue and the object queue.
    """
    num_keys = EPOCH_RATIO * num_images
    return min(65536, max(1, round(num_keys))), min(65536, max(1, round(num_keys * objects_per_image)))


def suggest_moco_length(num_images: int, batch_size: int) -> int:
    """Suggests a queue length for mmselfsup's ``MoCo``, which must be a multiple of the batch size.

    Args:
        num_images (int): Number of images in the dataset.
        batch_size (int): Number of images per iteration, over all processes.

    Returns:
        int: Multiple of ``batch_size`` closest to the image queue of :func:`suggest_lengths`, at least ``batch_size``.
    """
    return max(1, round(suggest_lengths(num_images, 0)[0] / batch_size)) * batch_size


class FeatureQueue(nn.Module):
    """The last ``length`` key embeddings, used as negatives in Eq. 1.

    Any number of keys can be enqueued at a time: the queue wraps around without dropping any. The pointer is a buffer
    on the device, so that enqueueing requires no synchronization. The queue is initialized with random unit vectors, as
    in MoCo.

    With gradient accumulation, all iterations of an optimizer step have the same negatives, as in a step with the
    accumulated batch: while ``deferred`` is True, :meth:`enqueue` only collects keys, and the next call with
    ``deferred`` False enqueues all of them. A checkpoint contains neither collected keys nor accumulated gradients.

    Args:
        length (int | str): Queue length K. The paper uses 65,536. A queue of length ``'auto'`` cannot be used before
            :meth:`resize`, or before it gets the length of a checkpoint.
        channels (int): Embedding dimension D. The paper uses 128.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, length: int | str = 65536, channels: int = 128) -> None:
        super().__init__()
        if length != 'auto' and (isinstance(length, str) or length < 1):
            raise ValueError(f"length must be at least 1 or 'auto', got {length!r}")
        self.unsized = length == 'auto'
        self.register_buffer('keys', F.normalize(torch.randn(channels, 1 if self.unsized else int(length)), dim=0))
        self.register_buffer('pointer', torch.zeros(1, dtype=torch.long))
        # Slots, keys and pointer that the last enqueue overwrote. Not buffers: checkpoints must not contain them.
        self._overwritten: tuple[Tensor, Tensor, Tensor] | None = None
        self.deferred = False
        self._collected: list[Tensor] = []

    def __len__(self) -> int:
        return self.keys.shape[1]

    @torch.no_grad()
    def resize(self, length: int) -> None:
        """Sets the length and fills the queue with random unit vectors, which must then be made equal on all ranks.

        Args:
            length (int): Queue length K.
        """
        self.keys = F.normalize(torch.randn(len(self.keys), length), dim=0).to(self.keys)
        self.pointer.zero_()
        self._overwritten, self.unsized = None, False
        self._collected.clear()

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replaces the oldest keys, or collects the new ones if ``deferred``.

        Args:
            keys (Tensor): ``(N, D)``. N may be 0; if N is larger than K, only the last K keys are stored.
        """
        if self.unsized:
            raise ValueError("queue_len='auto' has no length yet: train with SpatialCurriculumHook, or set a number")
        if self.deferred:
            self._collected.append(keys)
            self._overwritten = None
            return
        if self._collected:
            keys = torch.cat([*self._collected, keys])
            self._collected.clear()
        count, length = len(keys), len(self)
        skipped = max(count - length, 0)
        slots = (self.pointer + torch.arange(skipped, count, device=keys.device)) % length
        self._overwritten = slots, self.keys.index_select(1, slots), self.pointer.clone()
        self.keys.index_copy_(1, slots, keys[skipped:].T.to(self.keys.dtype))
        self.pointer.copy_((self.pointer + count) % length)

    def before_enqueue(self) -> dict[str, Tensor]:
        """Reconstructs the buffers as they were before the last :meth:`enqueue`.

        An iteration enqueues once, at its end. This method recovers the negatives of that iteration afterwards without
        a copy of the whole queue in every iteration.

        Returns:
            dict[str, Tensor]: Copies of the buffers by name.
        """
        state = dict(keys=self.keys.clone(), pointer=self.pointer.clone())
        if self._overwritten is not None:
            slots, keys, pointer = self._overwritten
            state['keys'].index_copy_(1, slots, keys)
            state['pointer'].copy_(pointer)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Resizes the queue to the length in the checkpoint, so that a run resumes even if the config has changed."""
        keys = state_dict.get(f'{prefix}keys')
        if keys is not None and keys.shape[0] == self.keys.shape[0]:
            self.keys, self.unsized = self.keys.new_empty(keys.shape), False
        self._overwritten = None
        self._collected.clear()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f'length={len(self)}, channels={self.keys.shape[0]}'
