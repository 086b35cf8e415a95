"""The first-in, first-out store of negatives."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    def __len__(self) -> int:
        return self.keys.shape[1]

    def snapshot(self) -> Tensor:
        """A copy ``(D, K)`` that later enqueueing leaves alone: autograd reads it again in backward."""
        return self.keys.clone()

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replaces the oldest entries.

        Args:
            keys (Tensor): ``(N, D)``; N may be 0, and of more than K rows the last K stay.
        """
        count, length = len(keys), len(self)
        skipped = max(count - length, 0)
        slots = (self.pointer + torch.arange(skipped, count, device=keys.device)) % length
        self.keys.index_copy_(1, slots, keys[skipped:].T.to(self.keys.dtype))
        self.pointer.copy_((self.pointer + count) % length)

    def extra_repr(self) -> str:
        return f'length={len(self)}, channels={self.keys.shape[0]}'
