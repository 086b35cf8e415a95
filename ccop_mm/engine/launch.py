"""Entry points of tools/train.py and tools/test.py: from a config file and a command line to a run."""

import contextlib
import errno
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ccop_mm import compat
from ccop_mm.engine.data_config import check_data_paths, fit_worker_options, tolerate_unreadable_images
from ccop_mm.engine.default_hooks import add_default_hooks, add_test_hooks
from ccop_mm.engine.gpu_ops import check_gpu_ops
from ccop_mm.engine.hooks.stop_hook import restore_signal_handlers
from ccop_mm.engine.malloc import keep_freed_memory
from ccop_mm.engine.queue_lengths import fit_queues
from ccop_mm.engine.resume import ResumedRunHook, set_resume
from ccop_mm.engine.work_dir import DeleteEarlierCheckpointsHook
from ccop_mm.preflight import Report, check_test, check_training
from ccop_mm.preflight.config import check_options
from ccop_mm.utils.config_file import read_config
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.run_config import is_first_process
from ccop_mm.utils.text import single_line
from ccop_mm.weights.newest_checkpoint import POINTER

__all__ = ['build_runner', 'check', 'load_config', 'set_resume', 'test', 'train']

#: Errors of a write that the user must resolve: full disk, exceeded quota, limited file size, read-only file system.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def load_config(
    config: str | Path,
    work_dir: str | Path | None = None,
    options: dict | None = None,
    launcher: str = 'none',
    local_rank: int = 0,
    amp: bool = False,
    auto_scale_lr: bool = False,
    report: Report | None = None,
) -> Config:
    """Reads the config of a run, applies options to it and adapts it to this machine.

    Args:
        config (str | Path): Config file.
        work_dir (str | Path, optional): Work directory; by default that of the config, or
            ``work_dirs/<name of the config>``.
        options (dict, optional): Settings to override, by dotted key.
        launcher (str): Job launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        local_rank (int): Rank of the process on its machine, unless the environment variable LOCAL_RANK is set.
        amp (bool): Use automatic mixed precision.
        auto_scale_lr (bool): Scale the learning rate by the ratio of the total batch size to
            ``auto_scale_lr.base_batch_size``.
        report (Report, optional): Gets the warnings about options, which are logged otherwise.

    Raises:
        InputError: The file does not exist or is not a valid config, or an option does not fit the config or the
            machine.
    """
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    cfg = read_config(config)
    cfg.launcher = launcher
    options_report = Report()
    check_options(cfg, options or {}, options_report)
    if report is not None:
        report.findings += options_report.warnings
    elif is_first_process(cfg, of_machine=True):
        for finding in options_report.warnings:
            print_log(str(finding), 'current', logging.WARNING)
    options_report.raise_errors()
    cfg.merge_from_dict(options or {})
    cfg.work_dir = str(work_dir or cfg.get('work_dir') or f'./work_dirs/{Path(config).stem}')
    if amp:
        _enable_amp(cfg)
        compat.check_precision(cfg)
    if auto_scale_lr:
        _enable_lr_scaling(cfg)
    fit_worker_options(cfg)
    return compat.prepare_config(cfg)


def _enable_amp(cfg: Config) -> None:
    if cfg.get('optim_wrapper') is None:
        raise InputError('--amp requires optim_wrapper in the config')
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
        InputError: The config has an invalid value, which a constructor rejected.
    """
    try:
        return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    except InputError:
        raise
    except (AssertionError, ImportError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f'{cfg.filename or "the config"} has an invalid value: {type(error).__name__}: {single_line(error)}; '
            'correct it, or pass --debug for the traceback'
        ) from error


class _IterationObserver(Hook):
    """Remembers whether an iteration was completed."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.completed = False

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Called after an iteration of the training."""
        self.completed = True

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence | None = None
    ) -> None:
        """Called after an iteration of the test."""
        self.completed = True


@contextlib.contextmanager
def _explain_first_failure(runner: Runner) -> Iterator[None]:
    """Turns an error before the end of the first iteration into an :class:`InputError`.

    Parts of a config that do not fit each other, such as the channels of backbone and neck, are noticed there. A later
    error keeps its traceback, because it is not reproduced as quickly.
    """
    observer = _IterationObserver()
    runner.register_hook(observer)
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # models, datasets and transforms may raise anything
        if observer.completed or (isinstance(error, OSError) and error.errno in DISK_ERRORS):
            raise
        message = f'{type(error).__name__}: {single_line(error)}'
        if str(error).startswith('Caught '):  # in a worker of the data loader, whose traceback the message contains
            message = str(error).strip().splitlines()[-1]
        raise InputError(
            f'the first iteration failed: {message}; correct the config or the data, or pass --debug for the traceback'
        ) from error


def check(cfg: Config, checkpoint: str | None = None) -> Report:
    """Completes the config of a run and checks it, its data and its weights; nothing is started.

    Args:
        cfg (Config): Config from :func:`load_config`, and for training after :func:`set_resume`; modified in place.
        checkpoint (str, optional): Checkpoint of a detector to test. Without it, training is checked.

    Returns:
        Report: All findings.

    Raises:
        InputError: A file, a folder or a data loader is missing, or the dataset is too small.
    """
    if checkpoint is not None:
        if cfg.get('test_dataloader') is None:
            raise InputError(
                'the config has no test_dataloader; this tool tests detectors, pre-trained models are evaluated with '
                'tools/analysis_tools/'
            )
        check_data_paths(cfg, 'test')
        add_test_hooks(cfg)
        return check_test(cfg, checkpoint)
    compat.check_precision(cfg)
    check_data_paths(cfg, 'train')
    check_data_paths(cfg, 'val')
    add_default_hooks(cfg)
    report = check_training(cfg, cfg.load_from if cfg.get('resume') else None)
    if not report.errors:
        fit_queues(cfg)
    return report


def _log_and_raise(report: Report, cfg: Config) -> None:
    """Logs a report once per machine, and raises :class:`ccop_mm.preflight.PreflightError` if there are errors."""
    first = is_first_process(cfg, of_machine=True)
    if first:
        report.log()
    report.raise_errors(details=first)


def _count_accumulated_images(runner: Runner) -> None:
    """Makes ``auto_scale_lr`` count the images of an optimizer step; mmengine counts those of an iteration."""
    scaling = runner.auto_scale_lr or {}
    counts = (runner.cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    if scaling.get('enable') and 'base_batch_size' in scaling and counts > 1:
        base = scaling['base_batch_size']
        # The config stays as it is: it is saved with the run, and may be used again.
        runner.auto_scale_lr = dict(scaling, base_batch_size=base / counts)
        runner.logger.info(
            f'auto_scale_lr.base_batch_size={base} is {base / counts:g} per iteration: {counts} iterations are '
            'accumulated'
        )


def train(cfg: Config, overwrite: bool = False) -> Runner:
    """Trains a model and logs the path of the last checkpoint.

    Args:
        cfg (Config): Training config, modified in place.
        overwrite (bool): Delete the checkpoints of an earlier run in the work directory before the first iteration.

    Raises:
        InputError: A dataset does not exist or does not fit the config, mmcv's ops cannot run on the GPU, or the disk
            is full.
        StoppedBySignal: The run was stopped by SIGTERM, SIGUSR1 or Ctrl-C, and its state was saved.
    """
    _log_and_raise(check(cfg), cfg)
    # Only for pre-training, whose steps allocate the same sizes. The images of a detector differ in size.
    if get_device() == 'cpu' and cfg.get('default_scope') == 'mmselfsup':
        keep_freed_memory()
    tolerate_unreadable_images(cfg, 'train_dataloader', 'redraw')
    tolerate_unreadable_images(cfg, 'val_dataloader', 'blank')
    runner = build_runner(cfg)
    check_gpu_ops(runner.model)
    _count_accumulated_images(runner)
    runner.register_hook(ResumedRunHook())
    if overwrite:
        runner.register_hook(DeleteEarlierCheckpointsHook())
    try:
        with _explain_first_failure(runner):
            runner.train()
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise InputError(
            f'cannot write {error.filename or cfg.work_dir}: {error.strerror}; free disk space, then resume the run'
        ) from error
    finally:
        restore_signal_handlers()
    last = Path(runner.work_dir, POINTER)
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
        InputError: The checkpoint does not exist, the config has no test loop, mmcv's ops cannot run on the GPU, or
            ``results`` is given and no evaluator writes COCO json.
    """
    if '://' not in checkpoint and not Path(checkpoint).is_file():
        raise InputError(f'checkpoint {checkpoint} does not exist')
    _log_and_raise(check(cfg, checkpoint), cfg)
    tolerate_unreadable_images(cfg, 'test_dataloader', 'blank')
    cfg.load_from = checkpoint
    if results is None:
        return _run_test(cfg)
    folder = Path(results).absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.results.') as temporary:
        _set_results_prefix(cfg, str(Path(temporary, Path(results).name)))
        metrics = _run_test(cfg)
        for path in sorted(Path(temporary).iterdir()):
            os.replace(path, folder / path.name)
    return metrics


def _run_test(cfg: Config) -> dict:
    runner = build_runner(cfg)
    check_gpu_ops(runner.model)
    with _explain_first_failure(runner):
        return runner.test()


def _set_results_prefix(cfg: Config, prefix: str) -> None:
    """Configures the COCO evaluators to write their detections to files with this path prefix."""
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    writers = [evaluator for evaluator in evaluators if 'Coco' in str(evaluator.get('type'))]
    if not writers:
        raise InputError('--results requires a test_evaluator that writes COCO json, such as CocoMetric')
    for evaluator in writers:
        evaluator.outfile_prefix = prefix
