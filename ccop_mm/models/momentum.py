"""Key encoder: exponential moving average of the query encoder."""

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn


class MomentumEncoder(nn.Module):
    """Copies of modules that are updated by an exponential moving average.

    Eq. 2: ``key = m * key + (1 - m) * query``.

    The first update copies the query weights, because these are initialized after construction. A checkpoint contains
    the step counter along with the key weights, so that nothing is copied after resuming. Buffers, such as the running
    statistics of batch normalization, are copied in every update, as in mmselfsup's MoCo.

    Args:
        modules (dict[str, nn.Module]): Modules of the query encoder. Each copy is registered under the same name.
        momentum (float): Momentum m. The paper uses 0.999.
        without_dropout (Collection[str]): Names of modules whose dropout and drop path stay off in training, so that
            the keys of a view do not depend on chance.
    """

    def __init__(
        self, modules: dict[str, nn.Module], momentum: float = 0.999, without_dropout: Collection[str] = ()
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f'momentum must be in [0, 1], got {momentum}')
        self.momentum = momentum
        self.without_dropout = tuple(without_dropout)
        #: Number of iterations since the start of training, including those in which ``enabled`` is False: it seeds the
        #: noise of an iteration. A plain int, so that reading it requires no synchronization.
        self.steps = 0
        #: Whether :meth:`update` changes anything besides ``steps``. The first update always copies the query weights.
        self.enabled = True
        for name, module in modules.items():
            self.add_module(name, copy.deepcopy(module).requires_grad_(False))
        self.train(self.training)

    def train(self, mode: bool = True) -> 'MomentumEncoder':
        """Sets the mode of all modules, except for the dropout of ``without_dropout``, which stays off."""
        super().train(mode)
        for name in self.without_dropout:
            for module in self.get_submodule(name).modules():
                # Dropout, DropPath and DropBlock of torch, mmcv, mmdet and timm.
                if 'Drop' in type(module).__name__ or isinstance(module, nn.MultiheadAttention):
                    module.train(False)
        return self

    @torch.no_grad()
    def update(self, modules: dict[str, nn.Module]) -> None:
        """Updates all parameters by Eq. 2 and copies all buffers, if ``enabled``; increments ``steps``.

        Args:
            modules (dict[str, nn.Module]): Modules of the query encoder, with the names given to the constructor.
        """
        self.steps += 1
        if self.steps > 1 and not self.enabled:
            return
        keys, queries, key_buffers, query_buffers = [], [], [], []
        for name, module in modules.items():
            keys += self.get_submodule(name).parameters()
            queries += module.parameters()
            key_buffers += self.get_submodule(name).buffers()
            query_buffers += module.buffers()
        if self.steps == 1:
            torch._foreach_copy_(keys, queries)
        else:
            torch._foreach_lerp_(keys, queries, 1 - self.momentum)
        if key_buffers:
            torch._foreach_copy_(key_buffers, query_buffers)

    def get_extra_state(self) -> Tensor:
        """Returns the step counter, which is saved with the weights."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        """Restores the step counter from a checkpoint."""
        self.steps = int(state)

    def extra_repr(self) -> str:
        return f'momentum={self.momentum}, steps={self.steps}'
