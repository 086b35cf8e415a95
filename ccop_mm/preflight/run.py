"""Runs all checks for a training or a test."""

from collections.abc import Callable

from mmengine.config import Config

from ccop_mm.preflight.config import check_config, check_test_config
from ccop_mm.preflight.detector_data import check_test_data, check_training_data
from ccop_mm.preflight.findings import Report
from ccop_mm.preflight.resume import check_resume
from ccop_mm.preflight.weights import check_test_weights, check_training_weights

#: Checks of a training run: ``check(cfg, report, resume)``. ``resume`` is the checkpoint file to resume from, or None.
TRAINING_CHECKS: tuple[Callable[[Config, Report, str | None], None], ...] = (
    check_config,
    check_training_data,
    check_training_weights,
    check_resume,
)

#: Checks of a test run: ``check(cfg, report, checkpoint)``. ``checkpoint`` is a file or URL.
TEST_CHECKS: tuple[Callable[[Config, Report, str], None], ...] = (
    check_test_config,
    check_test_data,
    check_test_weights,
)


def check_training(cfg: Config, resume: str | None = None) -> Report:
    """Checks a training run before anything slow is built.

    Args:
        cfg (Config): Training config after command-line options; not modified.
        resume (str, optional): Checkpoint file that the run resumes from.

    Returns:
        Report: All findings.
    """
    report = Report()
    for check in TRAINING_CHECKS:
        check(cfg, report, resume)
    return report


def check_test(cfg: Config, checkpoint: str) -> Report:
    """Checks a test run before anything slow is built.

    Args:
        cfg (Config): Config of a detector after command-line options; not modified.
        checkpoint (str): Checkpoint file or URL to test.

    Returns:
        Report: All findings.
    """
    report = Report()
    for check in TEST_CHECKS:
        check(cfg, report, checkpoint)
    return report
