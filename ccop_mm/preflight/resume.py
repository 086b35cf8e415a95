"""Checks that a resumed run continues the run that saved its checkpoint.

mmengine restores iteration, schedules and optimizer as they were, and compares nothing. The current config is therefore
compared with the one in the checkpoint, key by key:

* Refused: batch size, number of processes, gradient accumulation, batches per epoch, kind of the loop, type and
  parameter groups of the optimizer, and the checksum of the proposals. They change the meaning of an iteration or of
  the restored state. The number of images is compared when the dataset is built
  (:class:`ccop_mm.engine.resume.ResumedRunHook`).
* Refused within an epoch: seed, samplers, and, in epoch-based training, the keys that select the images. They change
  the order of the images.
* Carried over exactly: number of epochs or iterations, and ``param_scheduler``, if the new schedule ends with the new
  training. The learning rate at every remaining iteration is then that of an uninterrupted run with the new config,
  and the curriculum ends at its final values. Other schedules are refused.
* Listed with the value that takes effect: every other key that influences the training. The checkpoint's value takes
  effect for the arguments of the optimizer, which are part of its state, and the new value for all others.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from mmengine.config import Config

from ccop_mm.preflight.arguments import ALWAYS, DETECTION, PRETRAINING
from ccop_mm.preflight.checkpoint import RunCheckpoint
from ccop_mm.preflight.dumped_config import UNSET, differences, format_value, parse_config, plain_config
from ccop_mm.preflight.findings import Report
from ccop_mm.utils.run_config import expected_world_size, iterate_datasets
from ccop_mm.utils.text import format_truncated

#: Entry of mmengine's message hub, and thus of every checkpoint: what :func:`check_resume` cannot read from the config.
SETUP_KEY = 'training_setup'

#: Number of changed keys with a line of their own.
MAX_LINES = 10

# Top-level keys that mmengine's Runner reads and that influence a training. Configs contain others, such as the
# variables of their base files.
_RUN_KEYS = (
    *('model', 'data_preprocessor', 'train_dataloader', 'val_dataloader', 'train_cfg', 'val_cfg', 'val_evaluator'),
    *('optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'default_hooks', 'custom_hooks', 'randomness', 'sync_bn'),
    *('compile', 'activation_checkpointing', 'efficient_conv_bn_eval', 'runner_type', 'default_scope'),
)

# Keys whose change is refused, with the reason.
_REFUSED = {
    'train_cfg.type': 'the restored counts are those of another loop',
    'train_dataloader.batch_size': 'an iteration would have another number of images',
    'train_dataloader.num_batch_per_epoch': 'an epoch would have another number of iterations',
    'optim_wrapper.accumulative_counts': 'an optimizer step would have another number of images',
    'optim_wrapper.constructor': "the parameter groups of the optimizer would not be the checkpoint's",
    'optim_wrapper.optimizer.type': "the restored state is another optimizer's",
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    'optim_wrapper': {'type': 'OptimWrapper', 'accumulative_counts': 1},
    'train_dataloader': {'batch_size': 1},
}

_REORDERED = 'images would be repeated and left out because their order would change'
# Keys that determine which images the rest of an epoch contains. Iteration-based training has no epochs: its images may
# be replaced at any iteration.
_SAMPLERS = re.compile(r'train_dataloader\.(batch_)?sampler(\..*)?')
_IMAGES = re.compile(r'train_dataloader\.dataset(\.dataset|\.datasets\.\d+)*\.(ann_file|indices|filter_cfg)(\..*)?')

# Hooks that runs have without listing them. Checkpoints of earlier releases lack them. IterationSeedHook replaces
# mmengine's DistSamplerSeedHook.
_AUTOMATIC_HOOKS = frozenset(
    {
        *ALWAYS.values(),
        *PRETRAINING.values(),
        *DETECTION.values(),
        *('StopHook', 'DistSamplerSeedHook', 'IterationSeedHook'),
    }
)

# Keys that change neither results nor progress, or that are compared separately.
_NOT_LISTED = re.compile(
    r'\w+_dataloader\.(num_workers|persistent_workers|pin_memory|prefetch_factor|worker_init_fn)'
    r'|randomness\.seed|.*\.proposal_file'
)
_RESTORED = ('optim_wrapper.optimizer', 'optim_wrapper.paramwise_cfg', 'auto_scale_lr')


def check_resume(cfg: Config, report: Report, checkpoint: RunCheckpoint) -> None:
    """Compares a resumed run with the run that saved its checkpoint.

    Args:
        cfg (Config): Training config; not modified.
        report (Report): Receives the findings.
        checkpoint (RunCheckpoint): Checkpoint to resume from.
    """
    _Comparison(cfg, report, checkpoint).run()


class _Comparison:
    """One run of :func:`check_resume`.

    Args:
        cfg (Config): Training config.
        report (Report): Receives the findings.
        checkpoint (RunCheckpoint): Checkpoint.
    """

    def __init__(self, cfg: Config, report: Report, checkpoint: RunCheckpoint) -> None:
        self.cfg, self.report, self.path, self.content = cfg, report, checkpoint.path, checkpoint.content
        self.name, self.meta = checkpoint.name, checkpoint.meta
        self.setup = read_setup(self.content.get('message_hub'))
        self.restart = f'start a new run in another work_dir with load_from={self.path}'

    def run(self) -> None:
        """Adds all findings."""
        if not all(isinstance(self.meta.get(key), int) for key in ('epoch', 'iter')):
            self.report.error(self.path, 'does not contain the number of completed iterations', self.restart)
            return
        self.report.saw(f'resuming after {self.meta["iter"]} iterations')
        old_config = parse_config(self.meta.get('cfg'))
        self.check_state(old_config)
        self.check_processes()
        self.check_seed()
        self.check_proposals(old_config)
        if old_config is None:
            what = 'contains no config of the run that saved it'
            self.report.warning(self.path, what, 'make sure that batch size, images and schedule are those of that run')
            return
        old, new = _canonical(old_config), _canonical(plain_config(self.cfg.to_dict()))
        _drop_automatic_lengths(old, new)
        changes = {path: (before, after) for path, before, after in differences(old, new)}
        self.check_refused(changes)
        self.check_order(changes, by_epoch=new['train_cfg'].get('type') == 'EpochBasedTrainLoop')
        self.check_schedule(old, new, changes)
        self.list_others(changes)

    def describe(self, old: Any, new: Any) -> str:
        """Formats a changed value."""
        saved = 'without it' if old == UNSET else f'with {format_value(old)}'
        return f'is {format_value(new)}, but {self.name} was saved {saved}'

    def refuse(self, key: str, old: Any, new: Any, reason: str) -> None:
        """Adds an error about a changed key."""
        self.report.error(key, f'{self.describe(old, new)}: {reason}', f'restore the old value, or {self.restart}')

    def check_state(self, old_config: dict[str, Any] | None) -> None:
        """Checks that the checkpoint contains optimizer and schedules; the checkpoint of ``save_best`` does not."""
        scheduled = bool((self.cfg if old_config is None else old_config).get('param_scheduler'))
        for key, needed in (('optimizer', True), ('param_schedulers', scheduled)):
            if needed and key not in self.content:
                what = f'contains no {key}, which would start from scratch in the middle of the training'
                self.report.error(self.path, what, f'resume from another checkpoint, or {self.restart}')

    def check_processes(self) -> None:
        """Compares the number of processes, if the checkpoint contains it and this run's is known."""
        old, new = self.setup.get('world_size'), expected_world_size(self.cfg)
        if old is not None and new is not None and old != new:
            self.refuse('number of processes', old, new, 'an iteration would have another number of images')

    def check_seed(self) -> None:
        """Compares the random seed, which determines the order of the images."""
        old, new = self.meta.get('seed'), (self.cfg.get('randomness') or {}).get('seed')
        if old is None or new is None or old == new:
            return
        if self.is_within_epoch():
            self.refuse('randomness.seed', old, new, _REORDERED)
        else:
            self.report.warning(
                'randomness.seed', self.describe(old, new), 'the images follow the new seed, the model the old one'
            )

    def check_proposals(self, old_config: dict[str, Any] | None) -> None:
        """Compares the checksums of the proposals, or the file names if the checkpoint contains no checksums."""
        files = proposal_files(self.cfg)
        key = 'train_dataloader.dataset.proposal_file'
        if 'proposals' in self.setup:
            old, new = self.setup['proposals'], proposal_checksums(self.cfg)
            if None not in [*old, *new] and old != new:
                what = f'{", ".join(files) or "no file"} does not contain the proposals of {self.name}'
                self.report.error(key, what, f'use the same proposals, or {self.restart}')
        elif old_config is not None:
            old_files = proposal_files(old_config)
            if old_files != files and (old_files or files):
                before, after = (', '.join(paths) or 'not set' for paths in (old_files, files))
                what = f'is {after}, but {self.name} was saved with {before}'
                self.report.warning(key, what, 'the new value takes effect: make sure that it has the same proposals')

    def check_refused(self, changes: dict[str, tuple[Any, Any]]) -> None:
        """Adds an error for each change that is refused, and removes it from ``changes``."""
        for key, reason in _REFUSED.items():
            if key in changes:
                self.refuse(key, *changes.pop(key), reason)
        # With paramwise_cfg, mmengine creates a parameter group for each parameter; without, there is one group.
        paramwise = changes.get('optim_wrapper.paramwise_cfg')
        if paramwise is not None and any(value in (UNSET, None, {}) for value in paramwise):
            del changes['optim_wrapper.paramwise_cfg']
            self.refuse('optim_wrapper.paramwise_cfg', *paramwise, _REFUSED['optim_wrapper.constructor'])

    def check_order(self, changes: dict[str, tuple[Any, Any]], by_epoch: bool) -> None:
        """Adds an error for each change of the order of the images within an epoch; removes it from ``changes``."""
        if self.is_within_epoch():
            for key in list(changes):
                if _SAMPLERS.fullmatch(key) or (by_epoch and _IMAGES.fullmatch(key)):
                    self.refuse(key, *changes.pop(key), _REORDERED)

    def is_within_epoch(self) -> bool:
        """Returns whether the checkpoint was saved within an epoch, or if that is not known."""
        per_epoch = self.iterations_per_epoch()
        return per_epoch is None or self.meta['iter'] % per_epoch != 0

    def check_schedule(self, old: dict[str, Any], new: dict[str, Any], changes: dict[str, tuple[Any, Any]]) -> None:
        """Checks that a changed length or schedule can be carried over, and removes it from ``changes``."""
        lengths = {key: changes.pop(key) for key in ('train_cfg.max_epochs', 'train_cfg.max_iters') if key in changes}
        schedule = [key for key in changes if key.startswith('param_scheduler')]
        for key in schedule:
            del changes[key]
        if old['train_cfg'].get('type') != new['train_cfg'].get('type'):
            return  # refused; the length is given by another key
        misfit = self.find_misfit(new)
        for key, (before, after) in lengths.items():
            done = self.meta['epoch' if key.endswith('epochs') else 'iter']
            if not isinstance(before, int) or not isinstance(after, int) or before < 1:
                self.refuse(key, before, after, 'progress would have another meaning')
            elif after <= done:
                self.refuse(key, before, after, f'the checkpoint has completed {done} already')
            elif misfit:
                self.refuse(key, before, after, misfit)
            else:
                progress = f'progress continues at {done / after:.0%} instead of {done / before:.0%}'
                self.report.warning(key, self.describe(before, after), f'the new value takes effect, {progress}')
        if schedule:
            before, after = old['param_scheduler'], new['param_scheduler']
            if misfit:
                self.refuse('param_scheduler', before, after, misfit)
            else:
                what = f'differs from that of {self.name} in {format_truncated(schedule)}'
                fix = f'the new schedule takes effect, from its value at iteration {self.meta["iter"]}'
                self.report.warning('param_scheduler', what, fix)

    def find_misfit(self, new: dict[str, Any]) -> str | None:
        """Returns why a schedule cannot be continued by the new config, or None if it ends with the training."""
        loop, per_epoch = new['train_cfg'], self.iterations_per_epoch()
        epochs, iterations = loop.get('max_epochs'), loop.get('max_iters')
        if isinstance(epochs, int):
            iterations = epochs * per_epoch if per_epoch else None
        for scheduler in new['param_scheduler']:
            if not isinstance(scheduler, dict) or 'type' not in scheduler:
                return 'schedules of several optimizers cannot be carried over'
            misfit = _describe_misfit(scheduler, epochs if scheduler.get('by_epoch', True) else iterations)
            if misfit:
                return misfit
        return None

    def iterations_per_epoch(self) -> int | None:
        """Returns the number of iterations per epoch of the run that saved the checkpoint, if it is known."""
        length = self.setup.get('iterations_per_epoch')
        if length is not None:
            return length
        epochs, iterations = self.meta['epoch'], self.meta['iter']
        # Earlier releases did not store it. Other files, such as iter_*.pth, may have been saved within an epoch.
        is_complete = self.name.startswith('epoch_') and epochs and iterations % epochs == 0
        return iterations // epochs if is_complete else None

    def list_others(self, changes: dict[str, tuple[Any, Any]]) -> None:
        """Adds a warning for each remaining change, with the value that takes effect."""
        keys = [key for key in changes if not _NOT_LISTED.fullmatch(key)]
        for key in keys[:MAX_LINES]:
            old, new = changes[key]
            restored = key.startswith(_RESTORED)
            value, origin = (old, "checkpoint's") if restored else (new, 'new')
            effect = 'default' if value == UNSET else f'{origin} value {format_value(value)}'
            self.report.warning(key, self.describe(old, new), f'the {effect} takes effect')
        if len(keys) > MAX_LINES:
            rest = format_truncated(keys[MAX_LINES:], limit=MAX_LINES)
            what = f'{len(keys) - MAX_LINES} more keys differ from those of {self.name}: {rest}'
            self.report.warning(
                self.cfg.filename or 'config',
                what,
                "the checkpoint's values take effect for the optimizer, the new ones otherwise",
            )


def read_setup(message_hub: object) -> dict[str, Any]:
    """Returns the entry :data:`SETUP_KEY` of a message hub's state; empty if there is none."""
    infos = message_hub.get('runtime_info') if isinstance(message_hub, Mapping) else None
    setup = infos.get(SETUP_KEY) if isinstance(infos, Mapping) else None
    return setup if isinstance(setup, dict) else {}


def schedule_digest(config: Mapping[str, Any]) -> str:
    """Returns a text that is equal for two configs if length and schedule of the training are.

    Args:
        config (Mapping): Plain config, see :func:`ccop_mm.preflight.dumped_config.plain_config`.
    """
    canonical = _canonical(config)
    length = {key: canonical['train_cfg'].get(key) for key in ('type', 'max_epochs', 'max_iters')}
    return json.dumps([length, canonical['param_scheduler']], sort_keys=True, default=str)


def proposal_files(config: Mapping[str, Any]) -> list[str]:
    """Returns the paths of the proposals of a training config, resolved like ``ProposalDataset`` does."""
    files = []
    datasets = iterate_datasets((config.get('train_dataloader') or {}).get('dataset'), 'train_dataloader.dataset')
    for _, dataset, _ in datasets:
        path = proposal_file(dataset)
        if path is not None:
            files.append(path)
    return files


def proposal_file(dataset: Mapping[str, Any]) -> str | None:
    """Returns the path of the proposals of a dataset's config; None if it has none."""
    path, root = dataset.get('proposal_file'), dataset.get('data_root')
    if not isinstance(path, str):
        return None
    if isinstance(root, str) and root and '://' not in root and not os.path.isabs(path):
        return os.path.normpath(os.path.join(root, path))
    return path


def proposal_checksums(config: Mapping[str, Any]) -> list[str | None]:
    """Returns the checksum of each file of :func:`proposal_files`; None for a file that cannot be read."""
    return [_proposal_checksum(path) for path in proposal_files(config)]


def _proposal_checksum(path: str) -> str | None:
    """Returns the checksum that a proposals file contains, or that of the bytes of a COCO json."""
    try:
        if path.endswith('.json'):
            digest = hashlib.blake2b(digest_size=32)
            with open(path, 'rb') as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            return digest.hexdigest()
        with np.load(path, allow_pickle=False) as arrays:
            return arrays['checksum'].tobytes().hex()
    except Exception:  # a damaged file may raise anything; the dataset reports it
        return None


def _canonical(config: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the keys that influence a training and writes equivalent settings in the same way."""
    selected = {key: _canonical_part(config[key]) for key in _RUN_KEYS if config.get(key) is not None}
    for key, defaults in _DEFAULTS.items():
        selected[key] = {**defaults, **selected.get(key, {})}
    if isinstance(selected.get('model'), dict):
        selected['model'] = _without_initializers(selected['model'])
    loop = dict(selected.get('train_cfg') or {})
    by_epoch = loop.pop('by_epoch', None)
    if by_epoch is not None and 'type' not in loop:
        loop['type'] = 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop'
    selected['train_cfg'] = loop
    schedule = selected.get('param_scheduler') or []
    selected['param_scheduler'] = schedule if isinstance(schedule, list) else [schedule]
    default_hooks = selected.get('default_hooks') or {}
    selected['default_hooks'] = {key: hook for key, hook in default_hooks.items() if not _is_automatic(hook)}
    hooks = selected.get('custom_hooks') or []
    if isinstance(hooks, list) and all(isinstance(hook, dict) for hook in hooks):
        # Their order matters for equal priorities only.
        hooks = [hook for hook in hooks if not _is_automatic(hook)]
        names = [str(hook.get('type')) for hook in hooks]
        selected['custom_hooks'] = {
            name if names.index(name) == number else f'{name} ({number})': hook
            for number, (name, hook) in enumerate(zip(names, hooks, strict=True))
        }
    return selected


def _is_automatic(hook: Any) -> bool:
    return isinstance(hook, dict) and hook.get('type') in _AUTOMATIC_HOOKS


def _canonical_part(value: Any) -> Any:
    """Removes the scope from the names of types, and undoes what a run changes in its config."""
    if isinstance(value, list):
        return [_canonical_part(item) for item in value]
    if not isinstance(value, dict):
        return value
    part = {key: _canonical_part(item) for key, item in value.items()}
    if isinstance(part.get('type'), str):
        part['type'] = part['type'].rpartition('.')[2]
        if part['type'] == 'LoadReadableImage':  # see ccop_mm.engine.data_config.tolerate_unreadable_images
            part['type'] = 'LoadImageFromFile'
            part.pop('unreadable', None)
    return part


def _without_initializers(part: Any) -> Any:
    """Removes ``init_cfg`` at all levels: the checkpoint replaces the initial weights."""
    if isinstance(part, list):
        return [_without_initializers(item) for item in part]
    if isinstance(part, dict):
        return {key: _without_initializers(item) for key, item in part.items() if key != 'init_cfg'}
    return part


def _drop_automatic_lengths(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Removes queue lengths that the new run derives from its dataset (:mod:`ccop_mm.engine.queue_lengths`)."""
    models = [config.get('model') for config in (old, new)]
    if all(isinstance(model, dict) for model in models):
        automatic = new['model'].get('queue_len') == 'auto'
        for key in ('queue_len', 'object_queue_len'):
            if new['model'].get(key) == 'auto' or (automatic and new['model'].get(key) is None):
                for model in (old['model'], new['model']):
                    model.pop(key, None)


def _describe_misfit(scheduler: dict[str, Any], total: int | None) -> str | None:
    """Returns why a schedule does not fit the length of a training, or None if it does.

    Args:
        scheduler (dict): Config of a scheduler.
        total (int, optional): Length of the training in the unit of the scheduler; None if it is not known.
    """
    name = str(scheduler.get('type'))
    kind = re.sub(r'(LR|Momentum|ParamScheduler)$', '', name)
    known = ('Constant', 'Linear', 'MultiStep', 'Step', 'Exponential', 'CosineAnnealing', 'Poly')
    if kind not in known or total is None:
        return f'{name} cannot be carried over'
    begin, end, period = scheduler.get('begin', 0), scheduler.get('end', total), scheduler.get('T_max')
    late = [milestone for milestone in scheduler.get('milestones', []) if milestone >= total]
    if kind == 'Constant' or (kind == 'Linear' and scheduler.get('end_factor', 1) == 1):  # a warm-up
        last, fits = end, end <= total
    elif kind in ('MultiStep', 'Step', 'Exponential'):
        last, fits = max([end, *late]), end >= total and not late
    else:
        last = end if period is None or end < total else begin + period
        fits = end >= total and total == (end if period is None else begin + period)
    if fits:
        return None
    unit = 'epoch' if scheduler.get('by_epoch', True) else 'iteration'
    return f'{name} ends at {unit} {format_value(last)}, the training at {total}'
