"""Registered classes that record a run and stop it; imported through ``custom_imports``, also by subprocesses."""

import json
import os
import signal
from pathlib import Path

from mmcv.transforms import TRANSFORMS, BaseTransform
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

#: Environment variable: ``SIGNAL@ITERATION`` or ``SIGNAL@valITERATION``, optionally ``:group`` or ``:RANK``.
SEND = 'RECORD_RUN_SEND'


@HOOKS.register_module(force=True)
class RecordRun(Hook):
    """Appends each iteration to ``steps_rank_N.jsonl``: images, exact losses, rate; sends the signal in ``SEND``."""

    priority = 'VERY_LOW'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self._send(f'{runner.iter + 1}')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        scalars = runner.message_hub.log_scalars
        logged = ('train/lr', 'train/zeta', 'train/pairs_without_object')
        entry = dict(
            iteration=runner.iter + 1,
            epoch=runner.epoch,
            batch=batch_idx,
            images=[sample.img_id for sample in data_batch['data_samples']],
            losses={name: float(value).hex() for name, value in outputs.items()},
            logged={name: float(scalars[name].current()).hex() for name in logged if name in scalars},
        )
        with open(Path(runner.work_dir, f'steps_rank_{get_rank()}.jsonl'), 'a') as file:
            file.write(json.dumps(entry) + '\n')

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self._send(f'val{runner.iter}')

    def after_val_epoch(self, runner, metrics=None):
        with open(Path(runner.work_dir, 'validations.jsonl'), 'a') as file:
            file.write(json.dumps([runner.iter, {name: float(value).hex() for name, value in metrics.items()}]) + '\n')

    @staticmethod
    def _send(when):
        name, _, rest = os.environ.get(SEND, '').partition('@')
        at, _, target = rest.partition(':')
        if at != when or target not in ('', 'group', str(get_rank())):
            return
        send = os.killpg if target == 'group' else os.kill
        send(os.getpgid(0) if target == 'group' else os.getpid(), getattr(signal, name))


@TRANSFORMS.register_module(force=True)
class RecordLoad(BaseTransform):
    """Appends a line to a file for every image that is loaded, in any process."""

    def __init__(self, path):
        self.path = path

    def transform(self, results):
        with open(self.path, 'a') as file:
            file.write(f'{results["img_id"]}\n')
        return results


def read_lines(path):
    """Returns the entries of a file that the classes above wrote."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()] if Path(path).is_file() else []
