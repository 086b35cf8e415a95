"""Runs that are killed at random moments and resumed until they finish equal those that were never killed."""

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from record_run import read_lines
from small_transfer import CONFIGS, coco_data, make_small, narrow_model, read_config
from synthetic_scenes.scenes import write_scenes
from torch.utils._pytree import tree_flatten

ROOT = Path(__file__).resolve().parents[2]
DETECTOR = CONFIGS / 'transfer/mask_rcnn/mask-rcnn_r18-fpn_random_1x_coco.py'
NUM_KILLS = 10  # of each of the two runs
SEED = 20
#: Longest time in seconds until a process has started, has saved, or has ended after a signal.
PATIENCE = 240

# Sends a signal to the process before an operation on a file of a save: creation, chmod and renaming of a temporary
# file, and deletion of the previous checkpoint. Python raises audit events before it executes an operation.
KILL_IN_SAVE = """
import os, signal, sys
name, countdown, folder = os.environ['KILL_IN_SAVE'].split()
countdown = int(countdown)
def count(event, args):
    global countdown
    if event not in ('open', 'os.chmod', 'os.rename', 'os.remove') or not isinstance(args[0], str):
        return
    where, _, file = args[0].rpartition('/')
    if where == folder and (file.endswith('.tmp') or file.endswith('.pth') and event == 'os.remove'):
        countdown -= 1
        if countdown == 0:
            os.kill(os.getpid(), getattr(signal, name))
if name != 'none' and os.environ.get('RANK', '0') == '0':
    sys.addaudithook(count)
"""


@pytest.fixture
def pretraining(small_config, tmp_path, monkeypatch):
    """Config file and command of a pre-training of two processes with workers: 80 iterations, a save every 4."""
    monkeypatch.setenv('PYTHON', sys.executable)
    cfg = small_config(
        **{
            'train_cfg.max_epochs': 20,
            'train_dataloader.batch_size': 1,
            'train_dataloader.num_workers': 1,
            'train_dataloader.sampler.shuffle': True,
        }
    )
    cfg.default_hooks.checkpoint = dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=1)
    cfg.custom_hooks.append(dict(type='RecordRun'))
    cfg.param_scheduler = [
        dict(type='CosineAnnealingLR', T_max=20, by_epoch=True, convert_to_iter_based=True),
        dict(type='StepLR', step_size=7, gamma=0.5, by_epoch=True),
    ]
    cfg.custom_imports.imports.extend(['record_run', 'kill_in_save'])
    cfg.dump(tmp_path / 'config.py')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        monkeypatch.setenv('PORT', str(free.getsockname()[1]))
    return ['bash', str(ROOT / 'tools' / 'dist_train.sh'), str(tmp_path / 'config.py'), '2']


@pytest.fixture
def transfer(tmp_path):
    """Config file and command of a Mask R-CNN with a worker: 60 iterations, a save every 5, a validation every 15."""
    annotations = write_scenes(tmp_path / 'scenes', num_train=1, num_val=12, size=(64, 96))['val']
    cfg = read_config(DETECTOR)
    data = coco_data(cfg, tmp_path / 'scenes' / 'images', annotations, num_images=12)
    cfg = make_small(DETECTOR, {**narrow_model(cfg, 6), **data}, tmp_path / 'work')
    cfg.merge_from_dict(
        {
            'train_cfg.max_iters': 60,
            'train_cfg.val_interval': 15,
            'train_dataloader.num_workers': 1,
            'val_dataloader.dataset.indices': 3,
            'val_dataloader.batch_size': 1,
            'randomness': dict(seed=3),
            'log_level': 'ERROR',
        }
    )
    checkpoint = dict(type='mmselfsup.SafeCheckpointHook', by_epoch=False, interval=5, max_keep_ckpts=1)
    cfg.default_hooks.checkpoint = checkpoint
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=40)]
    cfg.custom_hooks = [dict(type='RecordRun')]
    cfg.custom_imports = dict(imports=['ccop_mm', 'record_run', 'kill_in_save'], allow_failed_imports=False)
    cfg.dump(tmp_path / 'config.py')
    return [sys.executable, str(ROOT / 'tools' / 'train.py'), str(tmp_path / 'config.py')]


class Runs:
    """Starts the run of a command, again and again, and sends signals to it.

    Args:
        command (list[str]): Command without ``--work-dir``; its third word is the config file.
        folder (Path): Folder with the config; the work directories are created in it.
    """

    def __init__(self, command, folder):
        self.command, self.config, self.folder = command, command[2], folder
        (folder / 'kill_in_save.py').write_text(KILL_IN_SAVE)

    def start(self, work_dir, *options, kill_in_save=('none', 0)):
        helpers = [self.folder, ROOT / 'tests' / 'helpers', ROOT]
        variables = {
            'PYTHONPATH': os.pathsep.join(map(str, helpers)),
            **{'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'RECORD_RUN_SEND': ''},
            'KILL_IN_SAVE': ' '.join(map(str, (*kill_in_save, work_dir))),
        }
        with (self.folder / 'output').open('a') as output:
            return subprocess.Popen(
                [*self.command, '--work-dir', str(work_dir), *options],
                env={**os.environ, **variables},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def processes(self):
        """Returns the processes of the run, with the id of their parent."""
        found = subprocess.run(['ps', '-wweo', 'pid,ppid,stat,args'], capture_output=True, text=True, check=True).stdout
        rows = [line.split(maxsplit=3) for line in found.splitlines()[1:]]
        return {int(pid): int(parent) for pid, parent, state, args in rows if self.config in args and state[0] != 'Z'}

    def wait(self, condition):
        """Waits until the condition holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, (self.folder / 'output').read_text()[-5000:]
            time.sleep(0.02)

    def wait_for_end(self, process):
        """Waits until all processes of the run have ended; returns the exit code of the first."""
        self.wait(lambda: process.poll() is not None)
        self.wait(lambda: not self.processes())
        return process.returncode

    def end(self):
        """Ends the processes that a failed test has left."""
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def targets(self, process, name, moment):
        """Lists the groups of processes that a signal may be sent to: single processes of the run, or all."""
        children = [pid for pid, parent in self.processes().items() if parent == process.pid]
        is_launcher = 'dist_train.sh' in self.command[1]
        # Workers of data loaders ignore SIGTERM. Processes that do not train yet wait for a torchrun that was killed.
        single = children if name == 'SIGKILL' or is_launcher else []
        alone = [] if is_launcher and children and (name, moment) == ('SIGKILL', 'start') else [[process.pid]]
        return [*alone, *[[pid] for pid in single], [process.pid, *children]]

    def kill(self, work_dir, name, moment, rng):
        """Starts or resumes the run, sends it a signal at a random moment, and waits until it has ended.

        Returns:
            bool: Whether the signal ended the run.
        """
        in_save = (name, rng.randint(1, 12)) if moment == 'save' else ('none', 0)
        delay, count = rng.uniform(0, 8 if moment == 'start' else 0.2), rng.randint(1, 4)
        started, before = time.monotonic(), len(steps(work_dir))
        process = self.start(work_dir, '--resume', kill_in_save=in_save)
        if moment == 'iteration':
            self.wait(lambda: len(steps(work_dir)) >= before + count or process.poll() is not None)
        if moment != 'save':
            time.sleep(delay)
            for pid in rng.choice(self.targets(process, name, moment)):
                try:
                    os.kill(pid, getattr(signal, name))
                except ProcessLookupError:  # has ended in the meantime
                    continue
        code = self.wait_for_end(process)
        recorded = steps(work_dir)
        print(f'{name} {moment}: exit code {code} after {time.monotonic() - started:.1f} s, {len(recorded)} steps')
        if name == 'SIGTERM' and len(recorded) > before:
            assert last_saved(work_dir) == recorded[-1]['iteration'], 'no iteration is lost'
        return code != 0

    def finish(self, work_dir, *options):
        code = self.wait_for_end(self.start(work_dir, *options))
        assert code == 0, (self.folder / 'output').read_text()[-5000:]


def steps(work_dir, rank=0):
    return read_lines(work_dir / f'steps_rank_{rank}.jsonl')


def last_saved(work_dir):
    """Returns the number of iterations of the checkpoint that a run resumes from."""
    path = (work_dir / 'last_checkpoint').read_text()
    return torch.load(path, weights_only=True)['meta']['iter']


def read_validations(work_dir):
    """Returns the exact metrics of each validation, by iteration."""
    return dict(map(tuple, read_lines(work_dir / 'validations.jsonl')))


def final_state(path):
    checkpoint = torch.load(path, weights_only=True)
    return tree_flatten([checkpoint[key] for key in ('state_dict', 'optimizer', 'param_schedulers')])[0]


def is_temporary(path):
    return path.name.startswith('.') or path.suffix in ('.tmp', '.partial', '.lock')


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['pretraining', 'transfer'])
def test_killed_runs_end_like_one_that_was_not(kind, request, tmp_path):
    rng = random.Random(SEED)
    print(f'seed {SEED}')
    runs = Runs(request.getfixturevalue(kind), tmp_path)
    request.addfinalizer(runs.end)
    undisturbed, work_dir = tmp_path / 'undisturbed', tmp_path / 'work'
    runs.finish(undisturbed)
    # Each signal at every kind of moment, the others at random.
    planned = list(itertools.product(['SIGTERM', 'SIGKILL'], ['start', 'save', 'iteration', 'iteration']))
    planned += [(name, rng.choice(['start', 'save', 'iteration'])) for name in ('SIGTERM', 'SIGKILL')]
    rng.shuffle(planned)
    assert len(planned) == NUM_KILLS
    for name, moment in planned:
        assert runs.kill(work_dir, name, moment, rng), 'the run was too short for all signals'
        assert not runs.processes()
    runs.finish(work_dir, '--resume')
    for rank in range(2 if kind == 'pretraining' else 1):
        expected = {step['iteration']: step for step in steps(undisturbed, rank)}
        # SIGKILL loses the iterations since the last save: they are repeated with equal results.
        found = steps(work_dir, rank)
        assert [step for step in found if step != expected[step['iteration']]] == []
        assert {step['iteration'] for step in found} == set(expected)
    if kind == 'transfer':
        assert read_validations(work_dir) == read_validations(undisturbed)
        assert set(read_validations(undisturbed)) == {15, 30, 45, 60}
    (last,) = undisturbed.glob('*.pth')
    assert [path.name for path in work_dir.glob('*.pth')] == [last.name]
    states = final_state(work_dir / last.name), final_state(last)
    assert len(states[0]) == len(states[1]) > 100
    for value, other in zip(*states, strict=True):
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    assert (work_dir / 'last_checkpoint').read_text() == str(work_dir / last.name)
    assert [path for path in work_dir.rglob('*') if is_temporary(path)] == []
