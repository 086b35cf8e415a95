"""The first-in, first-out store of negatives."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: COCO train2017's share of an epoch that the paper's image queue holds: 65,536 keys of 118,287 photos.
EPOCH_SHARE = 65536 / 118287


def suggest_lengths(photos: int, objects_per_photo: float) -> tuple[int, int]:
    """Lengths of the image and the object queue that suit a data set.

    A queue over more than an epoch holds every photo's own keys as negatives. These hold the share of an epoch that the
    paper's image queue holds of COCO, and never more than the paper's 65,536.

    Args:
        photos (int): Photos in the data set.
        objects_per_photo (float): Objects that a step uses of each, on average.
    """
    share = EPOCH_SHARE * photos
    return min(65536, max(1, round(share))), min(65536, max(1, round(share * objects_per_photo)))


class FeatureQueue(nn.Module):
    """The last ``length`` key embeddings, as negatives for Eq. 1.

    It takes any number of keys at a time, wraps around without dropping any, and never waits for the device: the
    pointer stays there. It starts out with random unit vectors, as MoCo's.

    Args:
        length (int): K; the paper uses 65,536.
        channels (int): D; the paper uses 128.
    """

    def __init__(self, length: int = 65536, channels: int = 128) -> None:
        super().__init__()
        if length < 1:
            raise ValueError(f'a queue needs a length of at least 1, got {length}')
        self.register_buffer('keys', F.normalize(torch.randn(channels, length), dim=0))
        self.register_buffer('pointer', torch.zeros(1, dtype=torch.long))
        # What the last enqueue overwrote: slots, keys, pointer. No buffers, for no checkpoint needs them.
        self._overwritten: tuple[Tensor, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return self.keys.shape[1]

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replaces the oldest entries.

        Args:
            keys (Tensor): ``(N, D)``; N may be 0, and of more than K rows the last K stay.
        """
        count, length = len(keys), len(self)
        skipped = max(count - length, 0)
        slots = (self.pointer + torch.arange(skipped, count, device=keys.device)) % length
        self._overwritten = slots, self.keys.index_select(1, slots), self.pointer.clone()
        self.keys.index_copy_(1, slots, keys[skipped:].T.to(self.keys.dtype))
        self.pointer.copy_((self.pointer + count) % length)

    def before_enqueue(self) -> dict[str, Tensor]:
        """Copies of the buffers as they were before the last :meth:`enqueue`, of which a step makes one.

        It is how the step's own negatives can be had after it, without a copy of the queue (34 MB) at every step.
        """
        state = dict(keys=self.keys.clone(), pointer=self.pointer.clone())
        if self._overwritten is not None:
            slots, keys, pointer = self._overwritten
            state['keys'].index_copy_(1, slots, keys)
            state['pointer'].copy_(pointer)
        return state

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        """Takes the length of a checkpoint's queue, so that a run resumes whatever its config says by now."""
        keys = state_dict.get(f'{prefix}keys')
        if keys is not None and keys.shape[0] == self.keys.shape[0]:
            self.keys = self.keys.new_empty(keys.shape)
        self._overwritten = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f'length={len(self)}, channels={self.keys.shape[0]}'
