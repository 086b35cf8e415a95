"""Runs all checks for a training or a test."""

from mmengine.config import Config

from ccop_mm.preflight.checkpoint import read_checkpoint
from ccop_mm.preflight.config import check_config, check_test_config
from ccop_mm.preflight.detector_data import check_test_data, check_training_data
from ccop_mm.preflight.findings import Report
from ccop_mm.preflight.metric_names import check_metric_names
from ccop_mm.preflight.resume import check_resume
from ccop_mm.preflight.weights import (
    check_initializers,
    check_load_from,
    check_resume_weights,
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
    check_config(cfg, report)
    check_metric_names(cfg, report)
    check_training_data(cfg, report)
    if resume is None:
        check_initializers(cfg, report)
        check_load_from(cfg, report)
        return report
    checkpoint = read_checkpoint(resume, report)
    if checkpoint is not None:
        check_resume_weights(cfg, report, checkpoint)
        check_resume(cfg, report, checkpoint)
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
    check_test_config(cfg, report)
    check_test_data(cfg, report)
    tested = read_checkpoint(checkpoint, report)
    if tested is not None:
        check_test_weights(cfg, report, tested)
    return report
