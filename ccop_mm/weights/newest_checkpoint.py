"""Search for the newest readable checkpoint of a run."""

import logging
import os
import re
import zipfile
from pathlib import Path

from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import single_line

#: File in which mmengine stores the path of the last checkpoint.
POINTER = 'last_checkpoint'


def find_newest(work_dir: str | Path) -> tuple[str, dict] | None:
    """Finds the newest readable checkpoint of a run and reads its ``meta``.

    The checkpoint named in ``last_checkpoint`` is tried first, then ``epoch_*.pth`` and ``iter_*.pth`` in the work
    directory and in the folder of that checkpoint, newest first. One warning lists the unreadable files. If the work
    directory was copied, ``last_checkpoint`` names a file of the original: the file of the same name in the work
    directory is used instead, if there is one.

    Args:
        work_dir (str | Path): Work directory of the run.

    Returns:
        tuple[str, dict] | None: Path and ``meta``, or None if no checkpoint is readable.
    """
    pointer = Path(work_dir, POINTER)
    text = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    named = [Path(text)] if text else []  # mmengine writes an absolute path to the pointer file
    if text and Path(work_dir, Path(text).name).is_file():
        named = [Path(os.path.abspath(work_dir), Path(text).name)]
    folders = [Path(os.path.abspath(work_dir)), *(path.parent for path in named)]
    others = {path for folder in folders for kind in ('epoch', 'iter') for path in folder.glob(f'{kind}_*.pth')}
    newest, unreadable = None, []
    for path in dict.fromkeys(named + sorted(others, key=_age, reverse=True)):
        try:
            newest = str(path), read_meta(path)
            break
        except InputError as error:
            unreadable.append(str(error))
    if unreadable:
        print_log('; '.join(unreadable), logger='current', level=logging.WARNING)
    return newest


def read_meta(path: str | Path) -> dict:
    """Reads the ``meta`` of a run's checkpoint after verifying the whole file.

    Verifies the CRC-32 of every record of the zip archive, which ``torch.load`` does not do, and loads the file as the
    run would load it, with ``weights_only=True``.

    Args:
        path (str | Path): Local file.

    Raises:
        InputError: The file is missing, truncated, damaged, or not a checkpoint of a run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f'record {damaged} is damaged')
        return CheckpointLoader.load_checkpoint(str(path), map_location='cpu', logger='silent')['meta']
    except Exception as error:  # a damaged file may raise anything
        raise InputError(
            f'{path} cannot be read as a checkpoint ({type(error).__name__}: {single_line(error)})'
        ) from error


def _age(path: Path) -> tuple[int, list[int]]:
    """Returns a sort key that is larger for newer files; the number in the name decides between equal times."""
    return path.stat().st_mtime_ns, [int(number) for number in re.findall(r'\d+', path.name)]
