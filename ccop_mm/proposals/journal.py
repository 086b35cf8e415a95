"""A side file of finished work, so that a run that was killed goes on where it was."""

import contextlib
import hashlib
import json
from pathlib import Path

from ccop_mm.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


class Journal:
    """Records appended to a text file, one line each: a checksum and a JSON value.

    A kill can tear the last line only; reading stops at the first line that is torn or altered, and what follows is cut
    off before anything is appended.

    Args:
        path (str | Path): The file; begun if absent. Its folder is made.
        header (dict): What the records depend on, kept as the first line; must be fit for JSON.
        decode (Callable): Makes what :attr:`records` holds of each record as JSON gave it.

    Raises:
        InputError: If the file was begun with another header, is in use by another process, or cannot be written.
    """

    def __init__(self, path, header, decode):
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, 'a+b')  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise InputError(f'cannot write {self.path}: {error.strerror}') from None
        self._lock()
        lines = self._lines()
        found = next(lines, None)
        if found is not None and found != header:
            self.close()
            raise InputError(_difference(self.path, found, header))
        #: list: The records that were found, decoded, in the order they were appended.
        self.records = list(map(decode, lines))
        self._file.truncate(self._end)
        if found is None:
            self.append(header)

    def append(self, record):
        """Adds a value fit for JSON. Once this returns, a kill of the process does not lose it."""
        payload = json.dumps(record, separators=(',', ':')).encode()
        self._file.write(_checksum(payload) + b' ' + payload + b'\n')
        self._file.flush()

    def close(self):
        """Closes the file and leaves it."""
        self._file.close()

    def remove(self):
        """Closes the file and deletes it: its records are safe elsewhere."""
        self.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def _lock(self):
        """Keeps other processes out until the file is closed, or this process is gone."""
        if fcntl is None:
            return
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self.close()
            raise InputError(f'{self.path} is in use: the same command is running already') from None
        except OSError:
            pass  # a file system without locks

    def _lines(self):
        """Yields the values of all whole lines, from the first; ``_end`` is where the last one yielded ends."""
        self._end = 0
        self._file.seek(0)
        for line in self._file:
            checksum, _, payload = line[:-1].partition(b' ')
            if not line.endswith(b'\n') or checksum != _checksum(payload):
                return
            self._end += len(line)
            yield json.loads(payload)


def _checksum(payload):
    return hashlib.blake2b(payload, digest_size=8).hexdigest().encode()


def _difference(path, found, wanted):
    """One line that says in what two headers differ."""
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    differences = ', '.join(f'{key} {found.get(key)} (now {wanted.get(key)})' for key in keys)
    return f'{path} was begun with {differences}: repeat that command, or delete the file to begin anew'
