"""The key encoder: a moving average of the query encoder."""

import copy

import torch
from torch import Tensor, nn


class MomentumEncoder(nn.Module):
    """Copies of modules that follow them slowly (Eq. 2: ``key = m * key + (1 - m) * query``).

    The first update copies the query's weights, for they are initialized after construction; a loaded checkpoint that
    held key weights has its step counter beside them, so nothing is copied then. Buffers (the running statistics of
    batch normalization) are copied at every update, as in mmselfsup's MoCo.

    Args:
        modules (dict[str, nn.Module]): The query's modules; each becomes an attribute of the same name.
        momentum (float): m; the paper uses 0.999.
    """

    def __init__(self, modules: dict[str, nn.Module], momentum: float = 0.999) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f'momentum must lie in [0, 1], got {momentum}')
        self.momentum = momentum
        #: Updates so far, over the whole training. A plain int: reading it never waits for the device.
        self.steps = 0
        for name, module in modules.items():
            self.add_module(name, copy.deepcopy(module).requires_grad_(False))

    @torch.no_grad()
    def update(self, modules: dict[str, nn.Module]) -> None:
        """One step of Eq. 2, in a few fused calls for all parameters.

        Args:
            modules (dict[str, nn.Module]): The query's modules, under the names given at construction.
        """
        keys, queries, key_buffers, query_buffers = [], [], [], []
        for name, module in modules.items():
            keys += self.get_submodule(name).parameters()
            queries += module.parameters()
            key_buffers += self.get_submodule(name).buffers()
            query_buffers += module.buffers()
        if self.steps == 0:
            torch._foreach_copy_(keys, queries)
        else:
            torch._foreach_lerp_(keys, queries, 1 - self.momentum)
        if key_buffers:
            torch._foreach_copy_(key_buffers, query_buffers)
        self.steps += 1

    def get_extra_state(self) -> Tensor:
        """The step counter, saved with the weights."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        """Takes the step counter of a checkpoint."""
        self.steps = int(state)

    def extra_repr(self) -> str:
        return f'momentum={self.momentum}, steps={self.steps}'
