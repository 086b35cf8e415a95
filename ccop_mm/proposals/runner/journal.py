"""Append-only journal of finished work, from which an interrupted run resumes."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ccop_mm.utils.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Journal:
    """Text file with one record per line: a checksum and a JSON value.

    Killing the process can only truncate the last line. Reading stops at the first line that is truncated or modified;
    the rest is removed before a record is appended.

    Args:
        path (str | Path): Journal file, created if it does not exist, together with its folder.
        header (Mapping[str, Any]): What the records depend on, stored as the first line; JSON values only.
        decode (Callable): Converts each JSON value to the element of :attr:`records`.

    Raises:
        InputError: If the file has another header, is in use by another process, or cannot be written.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any], decode: Callable[[Any], Any]) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, 'a+b')  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise InputError(f'cannot write {self.path}: {error.strerror}') from None
        self._lock()
        self._end = 0
        lines = self._read_lines()
        found = next(lines, None)
        if found is not None and found != header:
            self.close()
            raise InputError(
                f'{self.path} was started with {format_difference(found, header)}: repeat that command to finish it, '
                'or write to another file'
            )
        #: list: Decoded records of an earlier run, in the order in which they were appended.
        self.records = list(map(decode, lines))
        self._file.truncate(self._end)
        if found is None:
            self.append(header)

    def append(self, record: Any) -> None:
        """Appends a JSON value. Once this returns, the record survives if the process is killed."""
        payload = json.dumps(record, separators=(',', ':')).encode()
        self._file.write(_checksum(payload) + b' ' + payload + b'\n')
        self._file.flush()

    def close(self) -> None:
        """Closes the file and keeps it."""
        self._file.close()

    def remove(self) -> None:
        """Closes and deletes the file, once its records are stored elsewhere."""
        self.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def _lock(self) -> None:
        """Locks the file against other processes until it is closed or this process ends."""
        if fcntl is None:
            return
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self.close()
            raise InputError(f'{self.path} is in use: wait until the other run of this command has finished') from None
        except OSError:
            pass  # the file system does not support locks

    def _read_lines(self) -> Iterator[Any]:
        """Yields the values of the leading intact lines; ``_end`` is the offset behind the last one yielded."""
        self._end = 0
        self._file.seek(0)
        for line in self._file:
            checksum, _, payload = line[:-1].partition(b' ')
            if not line.endswith(b'\n') or checksum != _checksum(payload):
                return
            self._end += len(line)
            yield json.loads(payload)


def _checksum(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=8).hexdigest().encode()


def format_difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Formats the keys in which two dicts differ, '' if there are none."""
    keys = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
    return ', '.join(f'{key} {found.get(key)} (now {expected.get(key)})' for key in keys)
