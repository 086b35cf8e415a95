"""Entry points of tools/train.py and tools/test.py: from a config file and a command line to a run."""

import argparse
import logging
import os
import tempfile
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ccop_mm import compat
from ccop_mm.engine.data_config import check_data_paths, tolerate_unreadable_images
from ccop_mm.engine.malloc import keep_freed_memory
from ccop_mm.engine.queue_lengths import fit_queues
from ccop_mm.engine.resume import set_resume
from ccop_mm.preflight import Report, check_test, check_training
from ccop_mm.utils.config_file import read_config
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import single_line

__all__ = ['build_runner', 'load_config', 'set_resume', 'test', 'train']


def load_config(args: argparse.Namespace) -> Config:
    """Reads the config of a run, applies the command line to it and adapts it to this machine.

    Args:
        args (argparse.Namespace): ``config`` and the options of ``tools/common_arguments.py``; optionally ``amp`` and
            ``auto_scale_lr``.

    Raises:
        InputError: The file does not exist or is not a valid config, or an option does not fit the config or the
            machine.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config)
    cfg.launcher = args.launcher
    cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'./work_dirs/{Path(args.config).stem}'
    if getattr(args, 'amp', False):
        _enable_amp(cfg)
    if getattr(args, 'auto_scale_lr', False):
        _enable_lr_scaling(cfg)
    return compat.prepare_config(cfg)


def _enable_amp(cfg: Config) -> None:
    wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if wrapper not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise InputError(f'--amp cannot be combined with optim_wrapper.type={wrapper}; remove one of them')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def _enable_lr_scaling(cfg: Config) -> None:
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise InputError('--auto-scale-lr requires auto_scale_lr=dict(base_batch_size=...) in the config')
    cfg.auto_scale_lr.enable = True


def build_runner(cfg: Config) -> Runner:
    """Builds the runner named by ``runner_type``, or mmengine's ``Runner`` by default.

    Raises:
        InputError: The config has an invalid value, which a constructor rejected with a ``ValueError``.
    """
    try:
        return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f'{cfg.filename or "the config"} has an invalid value: {single_line(error)}') from error


def _log_report(report: Report) -> None:
    """Logs warnings; raises :class:`ccop_mm.preflight.PreflightError` if there are errors."""
    for finding in report.warnings:
        print_log(str(finding), 'current', logging.WARNING)
    report.raise_errors()


def train(cfg: Config) -> Runner:
    """Trains a model and logs the path of the last checkpoint.

    Raises:
        InputError: A dataset does not exist or does not fit the config.
    """
    check_data_paths(cfg.get('train_dataloader'))
    check_data_paths(cfg.get('val_dataloader'), cfg.get('val_evaluator'))
    _log_report(check_training(cfg, cfg.load_from if cfg.get('resume') else None))
    fit_queues(cfg)
    # Only for pre-training, whose steps allocate the same sizes. The images of a detector differ in size.
    if get_device() == 'cpu' and cfg.get('default_scope') == 'mmselfsup':
        keep_freed_memory()
    tolerate_unreadable_images(cfg, 'train_dataloader', 'redraw')
    tolerate_unreadable_images(cfg, 'val_dataloader', 'blank')
    runner = build_runner(cfg)
    runner.train()
    last = Path(runner.work_dir) / 'last_checkpoint'
    if last.is_file():
        runner.logger.info(f'finished after {runner.iter} iterations, last checkpoint: {last.read_text().strip()}')
    return runner


def test(cfg: Config, checkpoint: str, results: str | Path | None = None) -> dict:
    """Evaluates a checkpoint with the test loop of the config.

    Args:
        cfg (Config): Config of a detector.
        checkpoint (str): Checkpoint file or URL.
        results (str | Path, optional): Path prefix for the detections in COCO format: ``RESULTS.bbox.json``, and
            ``RESULTS.segm.json`` if the detector predicts masks. The files are created after the evaluation.

    Returns:
        dict: Metrics by name.

    Raises:
        InputError: The checkpoint does not exist, the config has no test loop, or ``results`` is given and no evaluator
            writes COCO json.
    """
    if '://' not in checkpoint and not Path(checkpoint).is_file():
        raise InputError(f'checkpoint {checkpoint} does not exist')
    if cfg.get('test_dataloader') is None:
        raise InputError(
            'the config has no test_dataloader; this tool tests detectors, pre-trained models are evaluated with '
            'tools/analysis_tools/'
        )
    check_data_paths(cfg.test_dataloader, cfg.get('test_evaluator'))
    _log_report(check_test(cfg, checkpoint))
    tolerate_unreadable_images(cfg, 'test_dataloader', 'blank')
    cfg.load_from = checkpoint
    if results is None:
        return build_runner(cfg).test()
    folder = Path(results).absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.results.') as temporary:
        _set_results_prefix(cfg, str(Path(temporary, Path(results).name)))
        metrics = build_runner(cfg).test()
        for path in sorted(Path(temporary).iterdir()):
            os.replace(path, folder / path.name)
    return metrics


def _set_results_prefix(cfg: Config, prefix: str) -> None:
    """Configures the COCO evaluators to write their detections to files with this path prefix."""
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    writers = [evaluator for evaluator in evaluators if 'Coco' in str(evaluator.get('type'))]
    if not writers:
        raise InputError('--results requires a test_evaluator that writes COCO json, such as CocoMetric')
    for evaluator in writers:
        evaluator.outfile_prefix = prefix
