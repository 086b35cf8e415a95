"""From a config file and a command line to a running job: what tools/train.py and tools/test.py share."""

import argparse
import copy
import os
import tempfile
from pathlib import Path

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ccop_mm import hosts
from ccop_mm.config_file import read_config
from ccop_mm.engine.checkpoint_hook import find_newest, read_meta
from ccop_mm.engine.malloc import keep_freed_memory
from ccop_mm.engine.queue_lengths import fit_queues
from ccop_mm.errors import InputError


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every OpenMMLab training and test tool has."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/<name of the config>)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='settings of the config to replace, e.g. train_dataloader.batch_size=8 "model.box_jitter.noise=(.2,.8)"',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # torch's older launchers pass this; the newer ones set the environment variable alone.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def load_config(args: argparse.Namespace) -> Config:
    """The config of a run: file, then options, then what this machine needs.

    Args:
        args (argparse.Namespace): ``config`` and what :func:`add_common_arguments` adds; ``amp`` if the tool has it.

    Raises:
        InputError: The file is absent or no config, or mixed precision is asked for where it cannot be had.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config)
    cfg.launcher = args.launcher
    cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'./work_dirs/{Path(args.config).stem}'
    if getattr(args, 'amp', False):
        _use_amp(cfg)
    if getattr(args, 'auto_scale_lr', False):
        _scale_lr(cfg)
    return hosts.prepare_config(cfg)


def _use_amp(cfg: Config) -> None:
    wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if wrapper not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise InputError(f'--amp does not go with optim_wrapper.type={wrapper}; remove one of them')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def _scale_lr(cfg: Config) -> None:
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise InputError('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config, and it has none')
    cfg.auto_scale_lr.enable = True


def _tolerate_bad_photos(cfg: Config, loader: str, unreadable: str) -> None:
    """Lets a detector's loader go on at a photo that cannot be read, see :class:`ccop_mm.datasets.LoadReadableImage`.

    It is done here, not in the config files: mmdet's inferencers look for ``LoadImageFromFile`` in the test pipeline,
    also in the config that a checkpoint carries. So a run changes the pipelines that it uses and no other.
    """
    if cfg.get('default_scope') != 'mmdet' or cfg.get(loader) is None:
        return
    cfg[loader] = copy.deepcopy(cfg[loader])  # the test loader is often the same object as that of validation
    for dataset in _datasets(cfg[loader].get('dataset') or {}):
        for step in dataset.get('pipeline') or []:
            if step.get('type') in ('LoadImageFromFile', 'mmdet.LoadImageFromFile'):
                step.update(type='LoadReadableImage', unreadable=unreadable)


def build_runner(cfg: Config) -> Runner:
    """The runner that the config asks for: ``runner_type``, or mmengine's."""
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


def set_resume(cfg: Config, resume: str | None) -> None:
    """Continues a run, with the seed that it began with if the config names none.

    Args:
        cfg (Config): Changed in place.
        resume (str, optional): None: start anew. ``'auto'``: from the newest checkpoint in the work folder that reads,
            as :func:`ccop_mm.engine.checkpoint_hook.find_newest` has it; from the start if there is none. Else a
            checkpoint file.

    Raises:
        InputError: The file does not exist or does not read.
    """
    if resume is None:
        return
    if resume == 'auto':
        newest = find_newest(cfg.work_dir)
        if newest is None:
            print_log(f'no checkpoint to resume from in {cfg.work_dir}: the run starts anew', logger='current')
            return
        path, meta = newest
    else:
        path, meta = resume, {} if '://' in resume else _read_named(resume, cfg)
    cfg.resume, cfg.load_from = True, path
    init = (cfg.get('model') or {}).get('init_cfg')
    steps = init if isinstance(init, list) else [init or {}]
    if any(str(step.get('type')).endswith(('CCOPPretrained', 'BackbonePretrained')) for step in steps):
        cfg.model.init_cfg = None  # the run's own weights replace them: the pre-training file may be gone
    # mmengine takes it up as well, but only after it has built the sampler with another one.
    randomness = cfg.get('randomness') or {}
    if randomness.get('seed') is None and meta.get('seed') is not None:
        cfg.randomness = dict(randomness, seed=meta['seed'])


def _read_named(path: str, cfg: Config) -> dict:
    hint = f'--resume alone takes the newest that reads in {cfg.work_dir}'
    if not Path(path).is_file():
        raise InputError(f'no checkpoint {path} to resume from; {hint}')
    try:
        return read_meta(path)
    except InputError as error:
        raise InputError(f'{error}; {hint}') from error


def train(cfg: Config) -> Runner:
    """Trains, and says at the end where the result lies."""
    _check_data(cfg.get('train_dataloader'))
    _check_data(cfg.get('val_dataloader'), cfg.get('val_evaluator'))
    fit_queues(cfg)
    # Pre-training alone: its steps are alike, so the memory kept fits. A detector's photos differ in size.
    if get_device() == 'cpu' and cfg.get('default_scope') == 'mmselfsup':
        keep_freed_memory()
    _tolerate_bad_photos(cfg, 'train_dataloader', 'redraw')
    _tolerate_bad_photos(cfg, 'val_dataloader', 'blank')
    runner = build_runner(cfg)
    runner.train()
    last = Path(runner.work_dir) / 'last_checkpoint'
    if last.is_file():
        runner.logger.info(f'done: {runner.iter} iterations, checkpoint {last.read_text().strip()}')
    return runner


def test(cfg: Config, checkpoint: str, results: str | Path | None = None) -> dict:
    """Evaluates a checkpoint with the config's test loop; returns the metrics.

    Args:
        cfg (Config): A detector's.
        checkpoint (str): File or URL.
        results (str | Path, optional): Beginning of the files that the detections go to, as COCO json:
            ``RESULTS.bbox.json``, and ``RESULTS.segm.json`` where there are masks. They appear when all are whole.

    Raises:
        InputError: The checkpoint does not exist, the config has no test loop, or no evaluator that writes COCO json.
    """
    if '://' not in checkpoint and not Path(checkpoint).is_file():
        raise InputError(f'no checkpoint {checkpoint}')
    if cfg.get('test_dataloader') is None:
        raise InputError(
            'this config has no test_dataloader: detectors are tested here, pre-training is inspected by tools/inspect/'
        )
    _check_data(cfg.test_dataloader, cfg.get('test_evaluator'))
    _tolerate_bad_photos(cfg, 'test_dataloader', 'blank')
    cfg.load_from = checkpoint
    if results is None:
        return build_runner(cfg).test()
    folder = Path(results).absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.results.') as temporary:
        _write_results_to(cfg, str(Path(temporary, Path(results).name)))
        metrics = build_runner(cfg).test()
        for path in sorted(Path(temporary).iterdir()):
            os.replace(path, folder / path.name)
    return metrics


def _write_results_to(cfg: Config, prefix: str) -> None:
    """Has the evaluators that know COCO json write their detections to files that begin so."""
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    writers = [evaluator for evaluator in evaluators if 'Coco' in str(evaluator.get('type'))]
    if not writers:
        raise InputError('--results: no test_evaluator of this config is a CocoMetric, which is what writes COCO json')
    for evaluator in writers:
        evaluator.outfile_prefix = prefix


def _check_data(loader: ConfigDict | None, evaluators: ConfigDict | list | None = None) -> None:
    """Looks for annotations and photos before anything slow is built: the hosts' own errors are tracebacks."""
    for dataset in _datasets((loader or {}).get('dataset') or {}):
        root = dataset.get('data_root') or ''
        prefixes = (
            [] if dataset.get('backend_args') else (dataset.get('data_prefix') or {}).values()
        )  # else not on disk
        for path in [dataset.get('ann_file'), *prefixes]:
            if isinstance(path, str) and path and '://' not in f'{root}{path}' and not Path(root, path).exists():
                raise InputError(
                    f'{Path(root, path)} does not exist; name your data with --cfg-options '
                    'train_dataloader.dataset.data_root=..., .ann_file=..., .data_prefix...='
                )
    if loader is None:
        return
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators or {}]:
        path = evaluator.get('ann_file')
        if isinstance(path, str) and '://' not in path and not Path(path).exists():
            raise InputError(
                f'{path}, which the evaluator compares with, does not exist; '
                'name yours with --cfg-options val_evaluator.ann_file=... test_evaluator.ann_file=...'
            )


def _datasets(dataset: ConfigDict) -> list[ConfigDict]:
    """What a dataset of a config reads: itself, or what RepeatDataset, ConcatDataset and their like hold."""
    if 'dataset' in dataset:
        return _datasets(dataset['dataset'])
    if 'datasets' in dataset:
        return [inner for part in dataset['datasets'] for inner in _datasets(part)]
    return [dataset]
