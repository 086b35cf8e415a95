"""Batch normalization with statistics of their own for groups of a batch, in one pass over the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def interleave(rows: Tensor, groups: int) -> Tensor:
    """``(groups * n, ...)``, group after group, -> the same rows with the groups in turn: 0, n, 2n, ..., 1, n + 1."""
    return rows.unflatten(0, (groups, -1)).transpose(0, 1).flatten(0, 1)


def deinterleave(rows: Tensor, groups: int) -> Tensor:
    """Undoes :func:`interleave`."""
    return rows.unflatten(0, (-1, groups)).transpose(0, 1).flatten(0, 1)


class SplitBatchNorm2d(nn.BatchNorm2d, _BatchNorm):  # mmengine's init_cfg goes by the names of the direct bases
    """``nn.BatchNorm2d`` that can take statistics over each of several groups, as if it were called once for each.

    One pass over the whole batch takes less time than one for each group: docs/performance.md has how much.

    Attributes:
        groups (int): Number of groups of equal size, whose images lie in turn (:func:`interleave`): image b is of group
            ``b % groups``. With 1, and in evaluation, it is ``nn.BatchNorm2d``.
    """

    groups = 1

    @classmethod
    def convert(cls, module: nn.Module) -> nn.Module:
        """Turns each ``nn.BatchNorm2d`` in a module into this class, in place; parameters, buffers and names stay.

        Layers of other classes stay as they are, those derived from ``nn.BatchNorm2d`` included.
        """
        for part in module.modules():
            if type(part) is nn.BatchNorm2d:
                part.__class__ = cls  # the same state, under the same names; only ``forward`` differs
        return module

    def forward(self, inputs: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> the same shape; B a multiple of ``groups``."""
        if self.groups == 1 or not self.training:
            return super().forward(inputs)
        groups, channels = self.groups, self.num_features
        mean, var = (inputs.new_zeros(groups * channels, dtype=self.running_mean.dtype) for _ in range(2))
        # (n * groups, C, H, W) -> (n, groups * C, H, W), a view: channel c of group g becomes channel g * C + c
        output = F.batch_norm(
            inputs.reshape(-1, groups * channels, *inputs.shape[2:]),
            mean,
            var,
            self.weight.repeat(groups),
            self.bias.repeat(groups),
            training=True,
            momentum=1.0,  # leaves the batch's own statistics in mean and var
            eps=self.eps,
        )
        with torch.no_grad():  # as the groups would move them one after the other: the last counts the most
            for batch in zip(mean.view(groups, channels), var.view(groups, channels), strict=True):
                torch._foreach_lerp_([self.running_mean, self.running_var], batch, self.momentum)
            self.num_batches_tracked.add_(groups)
        # No view to autograd: else it would copy the whole gradient three times for the in-place ReLU that follows.
        return torch.ops.aten._unsafe_view(output, inputs.shape)


def takes_global_statistics(module: nn.Module) -> bool:
    """Whether batch statistics are taken over all ranks, by torch's or mmcv's layer of this name."""
    return any(type(part).__name__ == 'SyncBatchNorm' for part in module.modules())


def can_split(module: nn.Module) -> bool:
    """Whether all batch statistics of a module are taken by :class:`SplitBatchNorm2d`, set as usual."""
    if takes_global_statistics(module):
        return False
    return all(
        isinstance(part, SplitBatchNorm2d) and part.affine and part.track_running_stats and part.momentum is not None
        for part in module.modules()
        if isinstance(part, _BatchNorm)
    )


def set_groups(modules: list[nn.Module], groups: int) -> None:
    """From now on the layers of the modules take statistics over so many groups.

    It holds until it is set anew, and not just for a forward pass: activation checkpointing repeats that in backward.
    """
    for module in modules:
        for part in module.modules():
            if isinstance(part, SplitBatchNorm2d):
                part.groups = groups
