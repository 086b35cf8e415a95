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

    The first estimate is high because it includes the start of the data loader's workers. After ten iterations it is
    repeated from the other nine, including checkpoints saved in between. The time of validations is not included in
    either. A resumed run logs its own first iteration.
    """

    priority = 'BELOW_NORMAL'

    def __init__(self) -> None:
        self._first = 0
        self._start = self._validation_start = 0.0

    def before_train(self, runner: Runner) -> None:
        """Stores the number of the first iteration."""
        self._first = runner.iter

    def before_train_epoch(self, runner: Runner) -> None:
        """Starts the clock before the data loader does; other hooks may be slow in ``before_train``."""
        if runner.iter == self._first:
            self._start = time.perf_counter()

    def before_val(self, runner: Runner) -> None:
        """Stores the start of a validation."""
        self._validation_start = time.perf_counter()

    def after_val(self, runner: Runner) -> None:
        """Excludes the validation from the measured time."""
        self._start += time.perf_counter() - self._validation_start

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
            losses = ''.join(
                f'{name} {torch.as_tensor(value).detach().item():.4g}, '
                for name, value in (outputs or {}).items()
                if 'loss' in name
            )
            self._start = time.perf_counter()
            runner.logger.info(
                f'{where}: {losses}{elapsed:.1f} s including the start of the data loader; estimate for the remaining '
                f'{remaining} iterations without validation: {format_duration(elapsed * remaining)}'
            )
        else:
            seconds = elapsed / (number - 1)
            runner.logger.info(
                f'{where}: {seconds:.2f} s per iteration; estimate for the remaining {remaining} iterations without '
                f'validation: {format_duration(seconds * remaining)}'
            )
