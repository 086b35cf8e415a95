"""Base of the hooks that measure the model at intervals during training."""

import logging
from abc import abstractmethod

from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner


class PeriodicProbeHook(Hook):
    """Measures the model before the first iteration, every ``interval`` epochs or iterations, and at the end.

    Only the first rank measures, while the others wait. A step is measured once.

    Args:
        interval (int): Epochs, or iterations, between two measurements.
        by_epoch (bool): Whether ``interval`` counts epochs.
        at_start (bool): Whether to measure before the first iteration, too, unless the run is resumed.

    Attributes:
        title (str): What is measured, in the log line.
        prefix (str): Prefix of the logged scalars.
    """

    # After the checkpoint hook (VERY_LOW): an error in a probe must not lose the epoch.
    priority = 'LOWEST'
    title: str
    prefix: str

    def __init__(self, interval: int, by_epoch: bool, at_start: bool) -> None:
        self.interval = interval
        self.by_epoch = by_epoch
        self.at_start = at_start
        self._last_step: int | None = None

    @abstractmethod
    def read_annotations(self) -> None:
        """Reads or checks the annotations; called before training."""

    @abstractmethod
    def measure(self, runner: Runner) -> dict[str, float]:
        """Returns the results for the current weights, by name, each in [0, 1]."""

    def before_train(self, runner: Runner) -> None:
        """Reads the annotations; measures the initial weights unless the run is resumed."""
        self.read_annotations()
        if self.at_start and runner.iter == 0:
            self._probe(runner, runner.iter)

    def after_train_epoch(self, runner: Runner) -> None:
        """Measures every ``interval`` epochs."""
        if self.by_epoch and self.every_n_epochs(runner, self.interval):
            self._probe(runner, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Measures every ``interval`` iterations."""
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self._probe(runner, runner.iter + 1)

    def after_train(self, runner: Runner) -> None:
        """Measures the final weights unless they were measured already."""
        self._probe(runner, runner.iter)

    def _probe(self, runner: Runner, step: int) -> None:
        if step == self._last_step:
            return
        self._last_step = step
        if is_main_process():
            scalars = self.measure(runner)
            named = {f'{self.prefix}/{name}': value for name, value in scalars.items()}
            runner.visualizer.add_scalars(named, step=step)
            values = ', '.join(f'{name} {100 * value:.1f}' for name, value in scalars.items())
            runner.logger.log(logging.INFO, f'{self.title} after {step} iterations, in %: {values}')
        barrier()
