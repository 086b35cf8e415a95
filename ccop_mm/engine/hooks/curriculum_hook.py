"""Advances the spatial noise curriculum during training."""

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from mmselfsup.registry import HOOKS

from ccop_mm.engine.queue_lengths import size_queues
from ccop_mm.models.box_jitter import SCSBoxJitter
from ccop_mm.models.ccop import CCOP
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.model import unwrap_model


@HOOKS.register_module()
class SpatialCurriculumHook(Hook):
    """Sets ``progress`` of the model's box jitter to the fraction of training completed (t in Sec. 3.3).

    t is computed before every iteration from the runner's iteration count and length. The hook therefore needs no
    settings and no state for epoch- and iteration-based loops, datasets of any size, gradient accumulation and resumed
    runs. It never exceeds 1. The hook logs ``zeta``, ``beta`` and ``acceptance``, the fraction of samples of Eq. 7 that
    reach the IoU threshold without rejection sampling.

    In runs that are not started by tools/train.py, the hook also resolves ``queue_len='auto'``.
    """

    def before_run(self, runner: Runner) -> None:
        """Sizes queues of length ``'auto'``, before a checkpoint is loaded.

        Raises:
            InputError: The length cannot be derived from the dataset.
        """
        model = unwrap_model(runner.model)
        if isinstance(model, CCOP) and isinstance(runner.train_loop, BaseLoop):
            size_queues(model, runner.train_loop.dataloader.dataset)

    def before_train(self, runner: Runner) -> None:
        """Checks that the model has a box jitter.

        Raises:
            InputError: The model has no attribute ``box_jitter``.
        """
        self._box_jitter(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Sets the fraction of training completed: 0 in the first iteration, just below 1 in the last."""
        self._box_jitter(runner).progress = min(runner.iter / runner.max_iters, 1.0)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Logs the current state of the curriculum."""
        jitter = self._box_jitter(runner)
        runner.message_hub.update_scalar('train/zeta', jitter.zeta)
        runner.message_hub.update_scalar('train/beta', jitter.beta)
        if jitter.acceptance is not None:
            runner.message_hub.update_scalar('train/acceptance', jitter.acceptance)

    @staticmethod
    def _box_jitter(runner: Runner) -> SCSBoxJitter:
        model = unwrap_model(runner.model)
        jitter = getattr(model, 'box_jitter', None)
        if jitter is None:
            raise InputError(
                f'SpatialCurriculumHook requires a model with a box_jitter, such as CCOP, got {type(model).__name__}; '
                'remove the hook from custom_hooks'
            )
        return jitter
