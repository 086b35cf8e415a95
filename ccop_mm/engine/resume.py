"""Resumes a training run from a checkpoint."""

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, Runner

from ccop_mm.preflight.dumped_config import parse_config, plain_config
from ccop_mm.preflight.resume import SETUP_KEY, proposal_checksums, read_setup, schedule_digest
from ccop_mm.utils.errors import InputError
from ccop_mm.weights.newest_checkpoint import find_newest, read_meta

#: Initializers that read a file.
FILE_INITIALIZERS = ('CCOPPretrained', 'BackbonePretrained', 'EncoderPretrained')


def set_resume(cfg: Config, resume: str | None) -> None:
    """Configures a run to resume, with the seed of the original run if the config does not set one.

    The model's ``init_cfg`` is removed if it loads a pre-training checkpoint: its weights would be overwritten, and the
    file may no longer exist.

    Args:
        cfg (Config): Training config, modified in place.
        resume (str, optional): Checkpoint file or URL. ``'auto'`` selects the newest readable checkpoint in the work
            directory (:func:`ccop_mm.weights.newest_checkpoint.find_newest`); without one, training starts from
            scratch. None leaves the config as it is, unless it sets ``resume=True`` itself: then the run resumes from
            ``load_from``, or as with ``'auto'``.

    Raises:
        InputError: The file does not exist or cannot be read.
    """
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    if resume is None:
        return
    if resume == 'auto':
        newest = find_newest(cfg.work_dir)
        if newest is None:
            if cfg.get('resume'):
                cfg.resume = False
            print_log(f'no checkpoint found in {cfg.work_dir}: training starts from scratch', logger='current')
            return
        path, meta = newest
    else:
        path, meta = resume, {} if '://' in resume else _read_checkpoint_meta(resume, cfg)
    cfg.resume, cfg.load_from = True, path
    init_cfg = (cfg.get('model') or {}).get('init_cfg')
    initializers = init_cfg if isinstance(init_cfg, list) else [init_cfg or {}]
    if any(str(item.get('type')).endswith(FILE_INITIALIZERS) for item in initializers):
        cfg.model.init_cfg = None
    # mmengine restores the seed too, but only after it has built the sampler with a different one.
    randomness = cfg.get('randomness') or {}
    if randomness.get('seed') is None and meta.get('seed') is not None:
        cfg.randomness = dict(randomness, seed=meta['seed'])


def _read_checkpoint_meta(path: str, cfg: Config) -> dict:
    hint = f'pass --resume without a file to use the newest readable checkpoint in {cfg.work_dir}'
    if not Path(path).is_file():
        raise InputError(f'checkpoint {path} does not exist; {hint}')
    try:
        return read_meta(path)
    except InputError as error:
        raise InputError(f'{error}; {hint}') from error


class ResumedRunHook(Hook):
    """Checks and completes what mmengine restores, and stores what the next resumed run is compared with.

    :func:`ccop_mm.engine.launch.train` registers this hook. Before the first iteration of a resumed run it

    * compares the number of processes, of images and of iterations per epoch with those of the checkpoint, or, if the
      checkpoint does not contain them, with its completed epochs and iterations;
    * rebuilds the schedules if the config changed their length or settings, and advances them to the current iteration.
      mmengine would restore the schedules with their former length.

    What changes of a config are accepted is decided before, by :func:`ccop_mm.preflight.resume.check_resume`.
    """

    def before_train(self, runner: Runner) -> None:
        """Checks a resumed run; stores the setup of every run in the message hub.

        Raises:
            InputError: The resumed run has another number of processes, images or iterations per epoch.
        """
        setup = describe_setup(runner)
        if runner.iter > 0:
            state = dict(runtime_info=runner.message_hub.runtime_info)
            _compare_setup(runner, read_setup(state), setup)
            former = read_setup(state).get('schedule')
            if former is None:  # of an earlier version: mmengine restores the text of the config
                former_config = parse_config(state['runtime_info'].get('cfg'))
                former = setup['schedule'] if former_config is None else schedule_digest(former_config)
            if former != setup['schedule']:
                advance_schedules(runner)
        runner.message_hub.update_info(SETUP_KEY, setup)


def describe_setup(runner: Runner) -> dict[str, Any]:
    """Returns what a resumed run must have in common with this one and a config does not contain.

    Args:
        runner (Runner): Runner whose data loader is built.

    Returns:
        dict: ``world_size``; ``num_images`` and, in an epoch-based loop, ``iterations_per_epoch``, if the dataset has a
        length; ``proposals``, see :func:`ccop_mm.preflight.resume.proposal_checksums`; ``schedule``, see
        :func:`ccop_mm.preflight.resume.schedule_digest`.
    """
    config = runner.cfg.to_dict()
    loader = runner.train_dataloader
    setup: dict[str, Any] = dict(
        world_size=runner.world_size,
        proposals=proposal_checksums(config),
        schedule=schedule_digest(plain_config(config)),
    )
    with contextlib.suppress(TypeError):  # a dataset without a length
        setup['num_images'] = len(loader.dataset)
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        setup['iterations_per_epoch'] = len(loader)
    return setup


def _compare_setup(runner: Runner, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    path = runner._load_from or 'the checkpoint'
    restart = f'restore the former setting, or start a new run in another work_dir with load_from={path}'
    epoch_based = 'iterations_per_epoch' in new
    names = dict(world_size='processes', num_images='training images', iterations_per_epoch='iterations per epoch')
    for key, name in names.items():
        if key not in old or key not in new or old[key] == new[key]:
            continue
        problem = f'this run has {new[key]} {name}, but {path} was saved with {old[key]}'
        # The progress of an iteration-based loop does not depend on the number of images, but their order does.
        if key == 'num_images' and not epoch_based:
            print_log(f'{problem}; the order of the images differs', logger='current', level=logging.WARNING)
        else:
            raise InputError(f'{problem}; {restart}')
    if epoch_based and 'iterations_per_epoch' not in old:
        length, epoch, iteration = new['iterations_per_epoch'], runner.epoch, runner.iter
        last = epoch if Path(path).name.startswith('epoch_') else epoch + 1
        if not epoch * length <= iteration <= last * length:
            raise InputError(
                f'this run has {length} iterations per epoch, but {path} was saved after {epoch} epochs of '
                f'{iteration / max(epoch, 1):g} iterations, thus with another number of images or processes or another '
                f'batch size; {restart}'
            )


def advance_schedules(runner: Runner) -> None:
    """Builds the schedules of the config and steps them to the current iteration.

    Learning rate and momentum are then those of an uninterrupted run with the config of this one.

    Args:
        runner (Runner): Resumed runner. The initial values of the schedules are those of the restored optimizer.
    """
    wrappers = runner.optim_wrapper
    for wrapper in wrappers.values() if isinstance(wrappers, OptimWrapperDict) else [wrappers]:
        for group in wrapper.param_groups:
            for key in [key for key in group if key.startswith('initial_')]:
                group[key.removeprefix('initial_')] = group[key]
    config = runner.cfg.get('param_scheduler')
    runner.param_schedulers = None if config is None else runner.build_param_scheduler(copy.deepcopy(config))
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # no step of the optimizer has preceded
        for iteration in range(1, runner.iter + 1):
            # A run that was stopped after the last iteration of an epoch has not stepped its epoch-based schedules yet.
            epoch, rest = divmod(iteration, len(runner.train_dataloader)) if by_epoch else (0, 1)
            epoch_ends = rest == 0 and epoch <= runner.epoch
            for scheduler in _all_schedulers(runner.param_schedulers):
                if not scheduler.by_epoch or epoch_ends:
                    scheduler.step()


def _all_schedulers(schedulers: Any) -> Iterator[Any]:
    for part in schedulers.values() if isinstance(schedulers, dict) else [schedulers or []]:
        yield from part
