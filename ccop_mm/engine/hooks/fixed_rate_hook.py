"""Keeps the learning rate of some parameters constant, such as that of SimSiam's predictor."""

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmselfsup.registry import HOOKS

from ccop_mm.utils.errors import InputError


@HOOKS.register_module()
class FixedRateHook(Hook):
    """Trains parameter groups with ``fix_lr=True`` at their initial learning rate, whatever the schedules do.

    The groups are marked in the config: ``paramwise_cfg=dict(custom_keys={'predictor': dict(fix_lr=True)})``. Unlike
    mmselfsup's ``SimSiamHook``, which sets a given number at the start of an epoch by default, it also works with
    schedules that change the rate in every iteration, and it takes the rate after ``--auto-scale-lr``.
    """

    # Above ParamSchedulerHook, whose rates of the last iteration are replaced before the next one.
    priority = 'NORMAL'

    def before_train(self, runner: Runner) -> None:
        """Checks that there is such a group.

        Raises:
            InputError: No parameter group has ``fix_lr=True``.
        """
        if not self._groups(runner):
            raise InputError(
                'FixedRateHook found no parameters: mark them with '
                "optim_wrapper.paramwise_cfg=dict(custom_keys={'predictor': dict(fix_lr=True)}), or remove the hook"
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Sequence | dict | None = None) -> None:
        """Restores the initial rate. Schedules store it as ``initial_lr``, after the rates were scaled."""
        for group in self._groups(runner):
            group['lr'] = group.get('initial_lr', group['lr'])

    @staticmethod
    def _groups(runner: Runner) -> list[dict]:
        return [group for group in runner.optim_wrapper.param_groups if group.get('fix_lr')]
