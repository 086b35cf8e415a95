"""Ownership of a work directory: one run at a time, and no new run over the checkpoints of an earlier one."""

import contextlib
import json
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.run_config import is_first_process
from ccop_mm.utils.text import format_truncated
from ccop_mm.weights.newest_checkpoint import POINTER

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Lock file in the work directory. Its content describes the process that holds the lock.
LOCK = '.lock'

#: Names of the checkpoints that mmengine's ``CheckpointHook`` writes by default.
CHECKPOINT_NAME = re.compile(r'(best_.+_)?(epoch|iter)_\d+\.pth')

#: Descriptors of the locks that this process holds.
_held: set[int] = set()


@contextlib.contextmanager
def claim_work_dir(cfg: Config, resume: str | None = None, overwrite: bool = False) -> Iterator[None]:
    """Locks the work directory of a run for the duration of the context.

    Only rank 0 locks. The operating system releases the lock when the process ends, however it ends. On a file system
    without locks, a warning is logged.

    Args:
        cfg (Config): Training config.
        resume (str, optional): Value of ``--resume``.
        overwrite (bool): Whether a new run may delete the checkpoints of an earlier one
            (:func:`delete_earlier_checkpoints`). Nothing is deleted here.

    Raises:
        InputError: Another run uses the directory; it contains checkpoints and the run neither resumes nor overwrites;
            the run reads one of the checkpoints that it would delete; or the directory cannot be written.
    """
    resumes = resume is not None or bool(cfg.get('resume'))
    if resumes and overwrite:
        raise InputError('overwrite deletes the checkpoints that resume continues from: use only one of them')
    if not is_first_process(cfg):
        yield
        return
    work_dir = Path(cfg.work_dir)
    existed = work_dir.exists()
    path = work_dir / LOCK
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path)
    except OSError as error:
        raise InputError(
            f'the work directory {work_dir} cannot be written ({error.strerror}): choose another one with --work-dir'
        ) from None
    try:
        if not resumes:
            check_earlier_run(cfg, overwrite)
        yield
    finally:
        if descriptor in _held:  # false in a forked process
            # Removed while the lock is held. A process that has opened the file before notices this, see _lock.
            with contextlib.suppress(PermissionError):  # Windows does not remove open files
                path.unlink(missing_ok=True)
            _held.discard(descriptor)
            os.close(descriptor)
        if not existed:
            with contextlib.suppress(OSError):  # the run has written files
                work_dir.rmdir()


def earlier_checkpoints(work_dir: str | Path) -> list[Path]:
    """Lists the pointer file and the checkpoints in a work directory, the pointer first.

    Only files in the directory itself are listed: the pointer of a copied directory names checkpoints of the original.
    """
    pointer = Path(work_dir, POINTER)
    checkpoints = sorted(path for path in Path(work_dir).glob('*.pth') if CHECKPOINT_NAME.fullmatch(path.name))
    return [*([pointer] if pointer.is_file() else []), *checkpoints]


def delete_earlier_checkpoints(work_dir: str | Path) -> None:
    """Deletes the checkpoints of an earlier run and logs their number.

    A later ``--resume`` must not continue the earlier run. The pointer is deleted first, so that it never names a
    missing file.

    Args:
        work_dir (str | Path): Work directory of the run.
    """
    if not is_main_process():
        return
    paths = earlier_checkpoints(work_dir)
    for path in paths:
        path.unlink()
    if paths:
        print_log(
            f'overwrite: deleted {format_truncated([path.name for path in paths])} of an earlier run in {work_dir}',
            logger='current',
            level=logging.WARNING,
        )


class DeleteEarlierCheckpointsHook(Hook):
    """Deletes the checkpoints of an earlier run just before the first iteration.

    By then, datasets, model and initial weights of the new run were loaded: a run that cannot start deletes nothing.
    """

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Deletes the checkpoints in the work directory of the runner."""
        delete_earlier_checkpoints(runner.work_dir)


def check_earlier_run(cfg: Config, overwrite: bool = False) -> None:
    """Checks that a new run neither mixes with an earlier one nor deletes a file that it reads.

    Args:
        cfg (Config): Training config with ``work_dir``.
        overwrite (bool): Whether the run deletes earlier checkpoints.

    Raises:
        InputError: The work directory contains checkpoints and ``overwrite`` is False, or the config reads one that
            would be deleted.
    """
    work_dir = Path(cfg.work_dir)
    paths = earlier_checkpoints(work_dir)
    if paths and not overwrite:
        raise InputError(
            f'{work_dir} contains {format_truncated([path.name for path in paths])} of an earlier run: continue that '
            'run with --resume, choose another directory with --work-dir, or delete these files with --overwrite'
        )
    deleted = {os.path.realpath(path) for path in paths}
    for text in _texts(cfg.to_dict()):
        if text.endswith('.pth') and os.path.realpath(text) in deleted:
            raise InputError(
                f'the config reads {text}, which --overwrite would delete: choose another directory with --work-dir'
            )


def _texts(value: Any) -> Iterator[str]:
    """Yields all strings in nested containers."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _lock(path: Path) -> int:
    """Locks a file, which is created if it does not exist, and returns its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock_descriptor(descriptor, path)
            # Another run may have removed the file between the two calls above.
            current = os.stat(path)
            if os.path.samestat(os.fstat(descriptor), current):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps(_describe_process()).encode())
                _held.add(descriptor)
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock_descriptor(descriptor: int, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise InputError(
            f'{path.parent} is in use by {_owner(descriptor)}: wait until it ends, or choose another directory with '
            '--work-dir'
        ) from None
    except OSError as error:
        print_log(
            f'{path} cannot be locked ({error.strerror}): make sure that no other run uses this directory',
            logger='current',
            level=logging.WARNING,
        )


def _describe_process() -> dict[str, Any]:
    return {
        'pid': os.getpid(),
        'host': socket.gethostname(),
        'started': time.strftime('%Y-%m-%d %H:%M:%S %z'),
        'command': ' '.join(sys.argv),
    }


def _owner(descriptor: int) -> str:
    """Formats the content of a lock file."""
    try:
        owner = json.loads(os.read(descriptor, 65536))
        return f'process {owner["pid"]} on {owner["host"]} since {owner["started"]} ({owner["command"][:200]})'
    except (OSError, ValueError, KeyError, TypeError):  # the owner has not written it yet
        return 'another run'


def _close_in_child() -> None:
    """Closes inherited locks in a forked process, which would otherwise hold them if it outlived this one."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_close_in_child)
