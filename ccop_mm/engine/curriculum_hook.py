"""Moves the spatial noise curriculum along with the training."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmselfsup.registry import HOOKS
from torch import nn

from ccop_mm.errors import InputError


@HOOKS.register_module()
class SpatialCurriculumHook(Hook):
    """Sets ``progress`` of the model's box jitter to the fraction of training done (t of Sec. 3.3) before each
    iteration.

    t comes from the runner's own iteration count and length, so epoch- and iteration-based loops, any dataset, gradient
    accumulation and a resumed run need no setting, and the hook keeps no state. It logs ``zeta``, ``beta`` and
    ``acceptance``, the share of plain draws of Eq. 7 that reach the IoU floor.
    """

    def before_train(self, runner: Runner) -> None:
        """Checks that there is something to move."""
        self._jitter(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Sets the fraction done: 0 at the first iteration, just under 1 at the last."""
        self._jitter(runner).progress = runner.iter / runner.max_iters

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Hands the present state to the log."""
        jitter = self._jitter(runner)
        runner.message_hub.update_scalar('train/zeta', jitter.zeta)
        runner.message_hub.update_scalar('train/beta', jitter.beta)
        if jitter.acceptance is not None:
            runner.message_hub.update_scalar('train/acceptance', jitter.acceptance)

    @staticmethod
    def _jitter(runner: Runner):
        model: nn.Module = runner.model
        while is_model_wrapper(model):
            model = model.module
        if not hasattr(model, 'box_jitter'):
            raise InputError(
                f'SpatialCurriculumHook needs a model with a box_jitter, such as CCOP; {type(model).__name__} has '
                'none: remove the hook from custom_hooks'
            )
        return model.box_jitter
