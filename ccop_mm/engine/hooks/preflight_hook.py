"""Runs the preflight checks in projects that do not use tools/train.py and tools/test.py."""

from typing import TYPE_CHECKING

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from mmengine.runner.checkpoint import find_latest_checkpoint

if TYPE_CHECKING:
    from ccop_mm.preflight import Report


@HOOKS.register_module()
class PreflightHook(Hook):
    """Checks config, data and weights before the first iteration of a training or a test (docs/checks.md).

    The hook is in mmengine's own registry, so that ``custom_imports = dict(imports=['ccop_mm'])`` and
    ``custom_hooks = [dict(type='PreflightHook')]`` work in the config of any OpenMMLab project. mmengine calls it after
    the datasets and the model are built; tools/train.py and tools/test.py run the same checks before.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Logs all warnings and a summary.

        Raises:
            PreflightError: The run would fail or give a wrong result.
        """
        report = self._check(runner)
        if report is None:
            return
        if is_main_process():
            report.log()
        report.raise_errors(details=is_main_process())

    @staticmethod
    def _check(runner: Runner) -> 'Report | None':
        """Returns the findings, None if the runner only validates."""
        # Imported here because it imports the models of mmdet, which takes seconds.
        from ccop_mm.preflight import Report, check_test, check_training
        from ccop_mm.preflight.detector_data import check_test_data

        checkpoint = runner._load_from
        if runner._resume and checkpoint is None:  # mmengine resumes from the newest checkpoint
            checkpoint = find_latest_checkpoint(runner.work_dir)
        if isinstance(runner._train_loop, BaseLoop):
            return check_training(runner.cfg, checkpoint if runner._resume else None)
        if not isinstance(runner._test_loop, BaseLoop):
            return None
        if checkpoint:
            return check_test(runner.cfg, checkpoint)
        report = Report()
        check_test_data(runner.cfg, report)
        return report
