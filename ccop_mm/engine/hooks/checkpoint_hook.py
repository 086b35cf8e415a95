"""Saves checkpoints atomically and deletes old ones only afterwards."""

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from mmselfsup.registry import HOOKS

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write
from ccop_mm.weights.newest_checkpoint import POINTER

#: Name under which :class:`SafeLocalBackend` is registered.
SAFE_BACKEND = 'ccop_mm.safe_local'


class SafeLocalBackend(LocalBackend):
    """Local file backend with atomic writes and deferred deletion.

    Attributes:
        pending_deletion (list[str]): Files passed to :meth:`remove`.
    """

    def __init__(self) -> None:
        self.pending_deletion: list[str] = []

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes a temporary file in the same directory, flushes it to disk and renames it.

        Raises:
            InputError: The disk is full, a quota is exceeded or the directory cannot be written.
        """
        with _reported_in_one_line(filepath), atomic_write(filepath) as file:
            file.write(obj)

    def remove(self, filepath: str | Path) -> None:
        """Adds the file to ``pending_deletion``."""
        self.pending_deletion.append(str(filepath))


register_backend(SAFE_BACKEND, SafeLocalBackend)


def write_pointer(work_dir: str | Path, checkpoint: str) -> None:
    """Writes the path of the last checkpoint to ``last_checkpoint``.

    Raises:
        InputError: The disk is full, a quota is exceeded or the directory cannot be written.
    """
    path = Path(work_dir, POINTER)
    with _reported_in_one_line(path), atomic_write(path, 'w') as file:
        file.write(checkpoint)


@contextlib.contextmanager
def _reported_in_one_line(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f'cannot write {path}: {error.strerror or error}; earlier checkpoints are intact, make the directory '
            'writable or free disk space, then resume with --resume'
        ) from error


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` in an order that is safe if the process is killed.

    mmengine deletes the oldest checkpoint before it writes the new one, and writes in place. With ``max_keep_ckpts=1``,
    a kill in between leaves no readable checkpoint. This hook writes the new checkpoint to a temporary file, flushes it
    to disk and renames it; then it updates ``last_checkpoint`` in the same way; then it deletes the checkpoints that
    ``max_keep_ckpts`` and ``save_best`` no longer keep. It temporarily needs disk space for one more checkpoint. Files
    left by a killed run (temporary files and checkpoints to delete) are removed at the next start.

    mmengine's implementation is used for publishing (``published_keys``), and for everything if ``out_dir`` is not on
    the local disk or ``file_client_args`` is given.

    Args:
        **kwargs: Arguments of mmengine's ``CheckpointHook``.
    """

    # Types of attributes that mmengine sets without annotations.
    file_backend: Any
    keep_ckpt_ids: deque[int]

    def before_train(self, runner: Runner) -> None:
        """Sets up the output directory and removes temporary files of a killed run."""
        super().before_train(runner)
        if self.file_client_args is not None or not isinstance(self.file_backend, LocalBackend):
            return
        self.file_backend = SafeLocalBackend()
        self.backend_args = dict(backend=SAFE_BACKEND)  # for files that the runner saves
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = deque(self.keep_ckpt_ids)  # mmengine limits its length to max_keep_ckpts
        if is_main_process():
            # Names of the temporary files of atomic_write.
            for folder, name in ((self.out_dir, f'*{Path(self.filename_tmpl).suffix}'), (runner.work_dir, POINTER)):
                for leftover in Path(folder).glob(f'.{name}.*.tmp'):
                    leftover.unlink()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        if not isinstance(self.file_backend, SafeLocalBackend):
            super()._save_checkpoint_with_step(runner, step, meta)
            return
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            self.keep_ckpt_ids.append(step)
            # Includes the checkpoints to delete: if this run is killed first, the next one deletes them.
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self.last_ckpt = self._checkpoint_path(step)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            self.filename_tmpl.format(step),
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_pointer(runner.work_dir, self.last_ckpt)
        while 0 < self.max_keep_ckpts < len(self.keep_ckpt_ids):
            self.file_backend.remove(self._checkpoint_path(self.keep_ckpt_ids.popleft()))
        self._delete_pending()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        super()._save_best_checkpoint(runner, metrics)
        if isinstance(self.file_backend, SafeLocalBackend):
            self._delete_pending()

    def _checkpoint_path(self, step: int) -> str:
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))

    def _delete_pending(self) -> None:
        best = {getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()}
        for path in self.file_backend.pending_deletion:
            # The new best checkpoint may have the same path as the previous one.
            if is_main_process() and path not in best:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(path)
        self.file_backend.pending_deletion.clear()
