"""Ownership of a work directory, and new runs over the checkpoints of an earlier one."""

import contextlib
import errno
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from ccop_mm import apis
from ccop_mm.engine import work_dir as work_dir_module
from ccop_mm.engine.work_dir import LOCK, claim_work_dir, delete_earlier_checkpoints, earlier_checkpoints
from ccop_mm.utils.errors import InputError

TRAIN = Path(__file__).resolve().parents[2] / 'tools' / 'train.py'
needs_fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs os.fork')


@pytest.fixture
def cfg(tmp_path):
    return Config(dict(work_dir=str(tmp_path / 'work'), launcher='none'))


@pytest.fixture
def warnings(monkeypatch):
    """Messages that the module logs."""
    messages = []
    monkeypatch.setattr(work_dir_module, 'print_log', lambda message, *args, **kwargs: messages.append(message))
    return messages


@contextlib.contextmanager
def forked(function):
    """Runs ``function(ready)`` in a forked process, which must call ``ready()``; yields its id, then kills it."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_end)
            function(lambda: os.write(write_end, b'1'))
        finally:
            os._exit(1)
    os.close(write_end)
    try:
        assert os.read(read_end, 1) == b'1', 'the child failed'
        yield pid
    finally:
        os.close(read_end)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def assert_rejected(cfg, *values, **options):
    with pytest.raises(InputError) as caught, claim_work_dir(cfg, **options):
        pass
    message = str(caught.value)
    assert '\n' not in message
    for value in values:
        assert str(value) in message


def test_second_run_names_the_first(cfg):
    with claim_work_dir(cfg):
        owner = json.loads(Path(cfg.work_dir, LOCK).read_text())
        assert (owner['pid'], owner['host'], owner['command']) == (
            os.getpid(),
            socket.gethostname(),
            ' '.join(sys.argv),
        )
        for options in ({}, {'resume': 'auto'}, {'overwrite': True}):
            assert_rejected(cfg, cfg.work_dir, os.getpid(), socket.gethostname(), owner['started'], **options)
        assert json.loads(Path(cfg.work_dir, LOCK).read_text()) == owner
        other = Config(dict(work_dir=cfg.work_dir + '_2'))
        with claim_work_dir(other):
            pass
    with claim_work_dir(cfg):
        pass


@needs_fork
def test_killed_run_leaves_no_lock(cfg):
    def hold(ready):
        with claim_work_dir(cfg):
            ready()
            time.sleep(60)

    with forked(hold) as pid:
        assert_rejected(cfg, pid)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert json.loads(Path(cfg.work_dir, LOCK).read_text())['pid'] == pid
        with claim_work_dir(cfg):
            assert json.loads(Path(cfg.work_dir, LOCK).read_text())['pid'] == os.getpid()


@needs_fork
def test_lock_is_not_inherited_by_forked_workers(cfg):
    def fork_worker(ready):
        with claim_work_dir(cfg):
            worker = os.fork()
            if worker == 0:
                time.sleep(5)
                os._exit(0)
            ready()
            time.sleep(60)

    with forked(fork_worker) as pid:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with claim_work_dir(cfg):  # although the worker still runs
            pass


@needs_fork
def test_forked_worker_that_leaves_the_context_keeps_the_lock(cfg):
    try:
        with claim_work_dir(cfg):
            pid = os.fork()
            if pid == 0:
                raise ChildProcessError
            os.waitpid(pid, 0)
            assert_rejected(cfg, os.getpid())
    except ChildProcessError:
        os._exit(0)


def test_rejected_run_leaves_no_files(cfg, tmp_path):
    with contextlib.suppress(ZeroDivisionError), claim_work_dir(cfg):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with claim_work_dir(cfg):
        Path(cfg.work_dir, 'log.txt').touch()
    assert [path.name for path in Path(cfg.work_dir).iterdir()] == ['log.txt']


@pytest.mark.parametrize(
    ('launcher', 'variable'), [('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID'), ('mpi', 'OMPI_COMM_WORLD_RANK')]
)
def test_only_rank_0_locks(cfg, monkeypatch, launcher, variable):
    cfg.launcher = launcher
    monkeypatch.setenv(variable, '1')
    with claim_work_dir(cfg):
        assert not Path(cfg.work_dir).exists()
        monkeypatch.setenv(variable, '0')
        with claim_work_dir(cfg):
            assert Path(cfg.work_dir, LOCK).exists()
            assert_rejected(cfg, os.getpid())


def test_file_system_without_locks(cfg, monkeypatch, warnings):
    def refuse(*args):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(work_dir_module.fcntl, 'flock', refuse)
    with claim_work_dir(cfg):
        pass
    (warning,) = warnings
    assert 'No locks available' in warning and str(Path(cfg.work_dir, LOCK)) in warning


def test_directory_that_cannot_be_written(cfg, tmp_path):
    (tmp_path / 'work').write_text('a file')
    assert_rejected(cfg, cfg.work_dir, 'File exists')
    cfg.work_dir = str(tmp_path / 'work' / 'run')
    assert_rejected(cfg, cfg.work_dir, 'Not a directory')


@pytest.mark.parametrize('name', ['epoch_3.pth', 'iter_100.pth', 'last_checkpoint', 'best_coco_bbox_mAP_epoch_3.pth'])
def test_new_run_over_an_earlier_one_is_rejected(cfg, name):
    path = Path(cfg.work_dir, name)
    path.parent.mkdir()
    path.write_text('/gone/epoch_3.pth')
    assert_rejected(cfg, name, '--resume', '--overwrite')
    for options in ({'resume': 'auto'}, {'resume': str(path)}, {'overwrite': True}):
        with claim_work_dir(cfg, **options):
            pass
    cfg.resume = True  # mmengine's own setting
    with claim_work_dir(cfg):
        pass
    assert path.read_text() == '/gone/epoch_3.pth'


def test_other_files_are_not_checkpoints_of_a_run(cfg):
    Path(cfg.work_dir).mkdir()
    for name in ('backbone.pth', 'epoch_final.pth', 'my_epoch_3.pth', 'epoch_3.pth.bak', 'nonfinite_iter_2_rank_0.pth'):
        Path(cfg.work_dir, name).touch()
    assert earlier_checkpoints(cfg.work_dir) == []
    with claim_work_dir(cfg):
        pass


def test_resume_and_overwrite_exclude_each_other(cfg):
    assert_rejected(cfg, 'overwrite', 'resume', resume='auto', overwrite=True)


def test_files_that_the_config_reads_are_not_overwritten(cfg):
    path = Path(cfg.work_dir, 'epoch_2.pth')
    path.parent.mkdir()
    path.touch()
    cfg.model = dict(init_cfg=[dict(type='CCOPPretrained', checkpoint=os.path.relpath(path))])
    assert_rejected(cfg, os.path.relpath(path), overwrite=True)
    cfg.model.init_cfg[0].checkpoint = str(path.parent.parent / 'epoch_2.pth')
    with claim_work_dir(cfg, overwrite=True):
        pass


def test_overwrite_deletes_only_checkpoints_of_the_directory(tmp_path, warnings, monkeypatch):
    original, copied = tmp_path / 'original', tmp_path / 'copied'
    for folder in (original, copied):
        folder.mkdir()
        for name in ('epoch_1.pth', 'epoch_2.pth', 'best_coco_bbox_mAP_epoch_1.pth', 'log.json'):
            (folder / name).touch()
        (folder / 'last_checkpoint').write_text(str(original / 'epoch_2.pth'))
    deleted, unlink = [], Path.unlink
    monkeypatch.setattr(Path, 'unlink', lambda path: (deleted.append(path.name), unlink(path)))
    delete_earlier_checkpoints(copied)
    assert deleted[0] == 'last_checkpoint' and len(deleted) == 4
    assert [path.name for path in copied.iterdir()] == ['log.json']
    assert len(list(original.iterdir())) == 5
    (warning,) = warnings
    assert str(copied) in warning and 'last_checkpoint' in warning
    delete_earlier_checkpoints(copied)
    assert len(warnings) == 1


@pytest.fixture
def train(small_config, tmp_path, monkeypatch, capsys):
    """``train(*arguments, **options) -> (exit code, stderr)`` runs tools/train.py in this process."""

    def call(*arguments, **options):
        config = tmp_path / 'config.py'
        cfg = small_config(**options)
        cfg.default_hooks.checkpoint = dict(type='SafeCheckpointHook', interval=1)
        cfg.dump(config)
        monkeypatch.setattr(sys, 'argv', ['train.py', str(config), '--work-dir', str(tmp_path / 'work'), *arguments])
        code = 0
        try:
            runpy.run_path(str(TRAIN), run_name='__main__')
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err

    return call


@pytest.mark.slow
def test_training_over_an_earlier_run(train, tmp_path):
    work = tmp_path / 'work'
    assert train(**{'train_cfg.max_epochs': 2})[0] == 0
    content = (work / 'epoch_2.pth').read_bytes()
    code, error = train()
    assert code == 2 and re.fullmatch(r'error: .*epoch_1\.pth.*--resume.*--overwrite.*\n', error)
    # An invalid run deletes nothing.
    code, error = train('--overwrite', **{'train_dataloader.dataset.proposal_file': 'gone.npz'})
    assert code == 2 and 'gone.npz' in error
    assert (work / 'epoch_2.pth').read_bytes() == content and (work / 'last_checkpoint').exists()
    # Neither does one whose initial weights cannot be loaded, which only building the model shows.
    code, error = train('--overwrite', **{'model.init_cfg': dict(type='BackbonePretrained', checkpoint='gone.pth')})
    assert code == 2 and 'gone.pth' in error
    assert (work / 'epoch_2.pth').read_bytes() == content and (work / 'last_checkpoint').exists()
    with claim_work_dir(Config(dict(work_dir=str(work))), resume='auto'):
        code, error = train('--overwrite')
    assert code == 2 and f' {os.getpid()} ' in error.splitlines()[-1]
    assert (work / 'epoch_2.pth').read_bytes() == content
    assert train('--overwrite')[0] == 0
    assert [path.name for path in earlier_checkpoints(work)] == ['last_checkpoint', 'epoch_1.pth']
    assert torch.load(work / 'epoch_1.pth', weights_only=True)['meta']['epoch'] == 1
    assert train('--resume', **{'train_cfg.max_epochs': 2})[0] == 0
    assert (work / 'epoch_2.pth').exists() and not (work / LOCK).exists()


@pytest.mark.slow
def test_api_has_the_same_rule(small_config, tmp_path):
    cfg = small_config()
    cfg.default_hooks.checkpoint = dict(type='SafeCheckpointHook', interval=1)
    cfg.dump(tmp_path / 'config.py')
    first = apis.train(tmp_path / 'config.py', work_dir=tmp_path / 'work')
    with pytest.raises(InputError, match=r'epoch_1\.pth'):
        apis.train(tmp_path / 'config.py', work_dir=tmp_path / 'work')
    assert apis.train(tmp_path / 'config.py', work_dir=tmp_path / 'work', overwrite=True) == first


@pytest.mark.slow
def test_second_run_of_two_processes_ends_with_one_line(small_config, tmp_path):
    cfg = small_config()
    cfg.dump(tmp_path / 'config.py')
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command = [sys.executable, *launch, TRAIN, tmp_path / 'config.py', '--launcher', 'pytorch']
    with claim_work_dir(cfg):
        # A rank without the other would wait for half an hour.
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
        assert [path.name for path in Path(cfg.work_dir).iterdir()] == [LOCK]
    assert done.returncode != 0
    (line,) = (line for line in done.stderr.splitlines() if 'error: ' in line)
    assert f' {os.getpid()} ' in line and cfg.work_dir in line
