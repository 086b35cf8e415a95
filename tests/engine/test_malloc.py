import os
import platform
import subprocess
import sys

import pytest

from ccop_mm.engine import malloc

# Prints the page faults of the second allocation of 64 MB, a block that glibc returns to the system by default.
# Loads the module from its file: importing ccop_mm takes seconds.
FAULTS = f"""
import ctypes, resource, runpy, sys
if sys.argv[1] == 'keep':
    assert runpy.run_path({malloc.__file__!r})['keep_freed_memory']()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(2**26)
    ctypes.memset(block, 1, 2**26)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
fill()
print(fill())
"""


@pytest.fixture
def plain_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith('MALLOC_') or name in ('GLIBC_TUNABLES', 'LD_PRELOAD'):
            monkeypatch.delenv(name)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another C library')
def test_freed_memory_causes_no_page_faults(plain_environment):
    def faults(mode):
        run = subprocess.run([sys.executable, '-c', FAULTS, mode], capture_output=True, text=True, check=True)
        return int(run.stdout)

    assert 10 * faults('keep') < faults('default')  # 16,384 pages of 4 KiB


@pytest.mark.parametrize('name', ['MALLOC_MMAP_MAX_', 'GLIBC_TUNABLES', 'LD_PRELOAD'])
def test_settings_of_environment_are_kept(plain_environment, monkeypatch, name):
    monkeypatch.setenv(name, '1')
    monkeypatch.setattr(malloc.ctypes, 'CDLL', lambda *_: pytest.fail('the allocator was set'))
    assert malloc.keep_freed_memory() is False


def test_other_c_libraries_are_not_configured(plain_environment, monkeypatch):
    monkeypatch.setattr(malloc.platform, 'libc_ver', lambda: ('', ''))
    monkeypatch.setattr(malloc.ctypes, 'CDLL', lambda *_: pytest.fail('the allocator was set'))
    assert malloc.keep_freed_memory() is False
