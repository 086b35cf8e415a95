import os
import stat
import subprocess
import sys

import pytest

from ccop_mm.utils.file_io import atomic_write


def test_creates_parent_directories(tmp_path):
    path = tmp_path / 'a' / 'b.txt'
    with atomic_write(path, 'w') as file:
        file.write('größer')
    assert path.read_bytes() == 'größer'.encode()
    assert os.listdir(path.parent) == ['b.txt']


def test_old_file_is_kept_until_the_end(tmp_path):
    path = tmp_path / 'a.bin'
    path.write_bytes(b'old')
    with atomic_write(str(path)) as file:
        file.write(b'new')
        file.flush()
        assert path.read_bytes() == b'old'
    assert path.read_bytes() == b'new'


@pytest.mark.parametrize('existing', [None, b'old'])
def test_failure_leaves_no_partial_file(tmp_path, existing):
    path = tmp_path / 'a.bin'
    if existing is not None:
        path.write_bytes(existing)
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b'half')
        raise KeyboardInterrupt
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == ([existing] if existing else [])


def test_killed_process_leaves_old_file(tmp_path):
    path = tmp_path / 'a.bin'
    path.write_bytes(b'old')
    # Loads only the module, because importing the package takes seconds.
    code = f"""
import importlib.util, os
spec = importlib.util.spec_from_file_location('file_io', {sys.modules[atomic_write.__module__].__file__!r})
file_io = importlib.util.module_from_spec(spec)
spec.loader.exec_module(file_io)
with file_io.atomic_write({str(path)!r}) as file:
    file.write(b'half')
    file.flush()
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, '-c', code], timeout=60).returncode == -9
    assert path.read_bytes() == b'old'


@pytest.mark.parametrize('umask', [0o022, 0o077])
def test_permissions_equal_those_of_open(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / 'atomic') as file:
            file.write(b'')
        (tmp_path / 'open').write_bytes(b'')
    finally:
        os.umask(before)
    atomic, plain = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ('atomic', 'open'))
    assert atomic == plain


def test_data_is_flushed_before_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda fd: calls.append('fsync') or fsync(fd))
    monkeypatch.setattr(os, 'replace', lambda *args: calls.append('replace') or replace(*args))
    with atomic_write(tmp_path / 'a') as file:
        file.write(b'data')
    assert calls == ['fsync', 'replace']
