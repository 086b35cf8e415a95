"""Logs the first iteration and an estimate of the duration of the training."""

import time

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmselfsup.registry import HOOKS

from ccop_mm.utils.text import format_duration

#: Iterations after which the estimate is repeated without the first one, which starts workers and compiles kernels.
REPEAT_AFTER = 10


@HOOKS.register_module()
class FirstIterationHook(Hook):
    """Logs the losses of the first iteration and the remaining time, whatever the interval of the logger.

    The first estimate includes the start of the data loader's workers and is therefore an upper bound. After ten
    iterations it is repeated from the other nine. Both exclude validation. A resumed run logs its own first iteration.
    """

    priority = 'BELOW_NORMAL'

    def before_train(self, runner: Runner) -> None:
        """Stores the number of the first iteration."""
        self._first = runner.iter

    def before_train_epoch(self, runner: Runner) -> None:
        """Starts the clock before the data loader does; other hooks may be slow in ``before_train``."""
        if runner.iter == self._first:
            self._start = time.perf_counter()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Logs iterations 1 and 10 of this run."""
        number = runner.iter - self._first + 1
        if number not in (1, REPEAT_AFTER):
            return
        remaining = runner.max_iters - runner.iter - 1
        elapsed = time.perf_counter() - self._start
        where = f'iteration {runner.iter + 1} of {runner.max_iters}'
        if number == 1:
            values = {name: torch.as_tensor(value).item() for name, value in (outputs or {}).items() if 'loss' in name}
            losses = ''.join(f'{name} {value:.4g}, ' for name, value in values.items())
            self._start = time.perf_counter()
            runner.logger.info(
                f'{where}: {losses}{elapsed:.1f} s including the start of the data loader; at most '
                f'{format_duration(elapsed * remaining)} for the remaining {remaining} iterations'
            )
        else:
            seconds = elapsed / (number - 1)
            runner.logger.info(
                f'{where}: {seconds:.2f} s per iteration, about {format_duration(seconds * remaining)} for the '
                f'remaining {remaining} iterations without validation'
            )
