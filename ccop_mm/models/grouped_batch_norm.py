"""Batch normalization with separate statistics for groups of a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def interleave(rows: Tensor, groups: int) -> Tensor:
    """Reorders a batch of consecutive groups so that the groups alternate.

    Args:
        rows (Tensor): ``(groups * n, ...)``, one group after the other.
        groups (int): Number of groups.

    Returns:
        Tensor: The same rows in the order 0, n, 2n, ..., 1, n + 1, 2n + 1, ...
    """
    return rows.unflatten(0, (groups, -1)).transpose(0, 1).flatten(0, 1)


def deinterleave(rows: Tensor, groups: int) -> Tensor:
    """Inverts :func:`interleave`."""
    return rows.unflatten(0, (-1, groups)).transpose(0, 1).flatten(0, 1)


# _BatchNorm is a direct base because mmengine's init_cfg matches layers by the names of their direct bases.
class GroupedBatchNorm2d(nn.BatchNorm2d, _BatchNorm):
    """``nn.BatchNorm2d`` with separate batch statistics for each of several groups.

    The result, including gradients and running statistics, is that of one call per group, computed in one pass over the
    whole batch. On a single device this reproduces the per-device statistics of data-parallel training, on which the
    shuffled batch normalization of MoCo relies (He et al., Momentum Contrast for Unsupervised Visual Representation
    Learning, CVPR 2020, Sec. 3.3). Also known as split batch normalization: lightly's ``SplitBatchNorm`` serves the
    same purpose. timm's ``SplitBatchNorm2d`` is a different layer (auxiliary batch normalization of AdvProp).

    Attributes:
        groups (int): Number of groups, which have equal size and alternate in the batch (:func:`interleave`): image b
            belongs to group ``b % groups``. With 1 group and in evaluation mode the layer is a plain
            ``nn.BatchNorm2d``.
    """

    groups = 1

    @classmethod
    def convert(cls, module: nn.Module) -> nn.Module:
        """Converts all ``nn.BatchNorm2d`` layers of a module in place.

        Parameters, buffers and their names stay the same. Other layers, including subclasses of ``nn.BatchNorm2d``, are
        not converted.

        Args:
            module (nn.Module): Module to convert.

        Returns:
            nn.Module: The same module.
        """
        for part in module.modules():
            if type(part) is nn.BatchNorm2d:
                part.__class__ = cls  # the state is identical; only ``forward`` differs
        return module

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalizes ``(B, C, H, W)``, where B is a multiple of ``groups``."""
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
            momentum=1.0,  # writes the batch statistics to mean and var
            eps=self.eps,
        )
        with torch.no_grad():  # update the running statistics with one group after the other
            for batch_stats in zip(mean.view(groups, channels), var.view(groups, channels), strict=True):
                torch._foreach_lerp_([self.running_mean, self.running_var], batch_stats, self.momentum)
            self.num_batches_tracked.add_(groups)
        # Not a view for autograd, which would otherwise copy the gradient for the in-place ReLU that follows.
        return torch.ops.aten._unsafe_view(output, inputs.shape)


def has_batch_norm(module: nn.Module) -> bool:
    """Returns whether a module contains a batch normalization layer of any kind."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def has_sync_batch_norm(module: nn.Module) -> bool:
    """Returns whether a module contains a ``SyncBatchNorm`` layer of torch or mmcv."""
    return any(type(part).__name__ == 'SyncBatchNorm' for part in module.modules())


def supports_groups(module: nn.Module) -> bool:
    """Returns whether batch statistics of a module can be computed per group.

    This requires that every batch normalization layer is a :class:`GroupedBatchNorm2d` with affine parameters, running
    statistics and a fixed momentum.
    """
    if has_sync_batch_norm(module):
        return False
    return all(
        isinstance(part, GroupedBatchNorm2d) and part.affine and part.track_running_stats and part.momentum is not None
        for part in module.modules()
        if isinstance(part, _BatchNorm)
    )


def set_groups(modules: list[nn.Module], groups: int) -> None:
    """Sets the number of groups of all :class:`GroupedBatchNorm2d` layers.

    The number is persistent and not an argument of the forward pass, because activation checkpointing repeats the
    forward pass during backward.

    Args:
        modules (list[nn.Module]): Modules whose layers are set.
        groups (int): Number of groups.
    """
    for module in modules:
        for part in module.modules():
            if isinstance(part, GroupedBatchNorm2d):
                part.groups = groups
