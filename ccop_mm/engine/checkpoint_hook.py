"""Checkpoints that survive a kill, and the search for the newest one that reads."""

import contextlib
import logging
import os
import re
import zipfile
from collections import deque
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader, Runner
from mmselfsup.registry import HOOKS

from ccop_mm.errors import InputError
from ccop_mm.fileio import atomic_write

#: mmengine's file that names the last checkpoint.
POINTER = 'last_checkpoint'


class SafeLocalBackend(LocalBackend):
    """The local disk, where files are whole or absent, and where :meth:`remove` only notes what shall go."""

    def __init__(self) -> None:
        self.condemned: list[str] = []

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes a temporary file in the same folder, flushes it to the disk and renames it."""
        with atomic_write(filepath) as file:
            file.write(obj)

    def remove(self, filepath: str | Path) -> None:
        """Adds the file to ``condemned``."""
        self.condemned.append(str(filepath))


register_backend('ccop_mm.safe_local', SafeLocalBackend)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` in an order that a kill cannot hurt: save, rename, pointer, only then delete.

    mmengine deletes the oldest checkpoint before it writes the new one, and writes in place; with ``max_keep_ckpts=1``
    a kill in between leaves nothing. Here the new file gets its name once it is whole and on the disk, then
    ``last_checkpoint`` does, then what ``max_keep_ckpts`` and ``save_best`` make superfluous goes. So for a moment
    there is one file more. What a killed run leaves behind, temporary files and superfluous checkpoints, is removed at
    the next start. Publishing (``published_keys``) goes mmengine's way; so does everything where ``out_dir`` is not on
    the local disk, or ``file_client_args`` is given.

    Args:
        **kwargs: As mmengine's ``CheckpointHook``.
    """

    def before_train(self, runner: Runner) -> None:
        """Finds the folder, and removes what a killed run has left there."""
        super().before_train(runner)
        if self.file_client_args is not None or not isinstance(self.file_backend, LocalBackend):
            return
        self.file_backend = SafeLocalBackend()
        self.backend_args = dict(backend='ccop_mm.safe_local')  # of all that the runner is told to save
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = deque(self.keep_ckpt_ids)  # mmengine's holds max_keep_ckpts at most
        if is_main_process():
            # The names that atomic_write gives.
            for folder, name in ((self.out_dir, f'*{Path(self.filename_tmpl).suffix}'), (runner.work_dir, POINTER)):
                for leftover in Path(folder).glob(f'.{name}.*.tmp'):
                    leftover.unlink()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        if not isinstance(self.file_backend, SafeLocalBackend):
            super()._save_checkpoint_with_step(runner, step, meta)
            return
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            self.keep_ckpt_ids.append(step)
            # With those that shall go: if this run is killed before, the next one removes them when it starts.
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self.last_ckpt = self._path(step)
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
            with atomic_write(Path(runner.work_dir, POINTER), 'w') as file:
                file.write(self.last_ckpt)
        while 0 < self.max_keep_ckpts < len(self.keep_ckpt_ids):
            self.file_backend.remove(self._path(self.keep_ckpt_ids.popleft()))
        self._delete_condemned()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        super()._save_best_checkpoint(runner, metrics)
        if isinstance(self.file_backend, SafeLocalBackend):
            self._delete_condemned()

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))

    def _delete_condemned(self) -> None:
        best = {getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()}
        for path in self.file_backend.condemned:
            # The new best may have been written under the name of the old one.
            if is_main_process() and path not in best:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(path)
        self.file_backend.condemned.clear()


def read_meta(path: str | Path) -> dict:
    """What a checkpoint says of its run (``meta``), once all of the file has been read.

    Every byte is held against the checksums of the zip archive, which ``torch.load`` leaves out (it takes a flipped bit
    for a weight; the check costs half the time of loading), and the whole is loaded as the run will load it, so
    without pickle's dangers.

    Args:
        path (str | Path): A local file.

    Raises:
        InputError: The file is absent, cut short, damaged or no checkpoint of a run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f'{damaged} is damaged')
        return CheckpointLoader.load_checkpoint(str(path), map_location='cpu', logger='silent')['meta']
    except Exception as error:  # broken bytes may raise anything
        reason = next(iter(str(error).splitlines()), '')
        raise InputError(f'{path} does not read as a checkpoint ({type(error).__name__}: {reason})') from error


def find_newest(work_dir: str | Path) -> tuple[str, dict] | None:
    """The newest checkpoint of a run that reads, and its ``meta``.

    First comes the one that ``last_checkpoint`` names, then ``epoch_*.pth`` and ``iter_*.pth`` of the work folder (and
    of the folder that the pointer leads to), the latest first. One warning names those that were passed over.

    Args:
        work_dir (str | Path): The run's work folder.

    Returns:
        tuple[str, dict] | None: Path and ``meta``; None if there is no checkpoint that reads.
    """
    pointer = Path(work_dir, POINTER)
    text = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    named = [Path(text)] if text else []
    # mmengine writes the pointer as an absolute path.
    folders = [Path(os.path.abspath(work_dir)), *(path.parent for path in named)]
    others = {path for folder in folders for kind in ('epoch', 'iter') for path in folder.glob(f'{kind}_*.pth')}
    newest, passed_over = None, []
    for path in dict.fromkeys(named + sorted(others, key=_age, reverse=True)):
        try:
            newest = str(path), read_meta(path)
            break
        except InputError as error:
            passed_over.append(str(error))
    if passed_over:
        print_log('; '.join(passed_over), logger='current', level=logging.WARNING)
    return newest


def _age(path: Path) -> tuple[int, list[int]]:
    """Larger for newer files; the number in the name decides where the file system's clock does not."""
    return path.stat().st_mtime_ns, [int(number) for number in re.findall(r'\d+', path.name)]
