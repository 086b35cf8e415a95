"""Atomic file writes."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = 'wb') -> Iterator[IO[Any]]:
    """Opens a temporary file next to ``path`` and renames it to ``path`` when the block ends without an exception.

    Readers see either the old file or the complete new one, also after the process was killed. Missing parent
    directories are created.

    Args:
        path (str | Path): File to write.
        mode (str): ``'wb'``, or ``'w'`` for UTF-8 text.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.tmp')
    try:
        with open(descriptor, mode, encoding=None if 'b' in mode else 'utf-8') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp creates private files: set the permissions that open() would have set.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
