"""The C library's memory allocator, set for training on a CPU."""

import ctypes
import os
import platform

# Of glibc's malloc.h; see mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Lets this process, and those that it forks, keep what they have freed for their next allocations.

    By default glibc takes each block over 32 MB straight from the system and gives it back when it is freed. A training
    step needs the same blocks as the one before it, so the system clears the same pages at every step: one by one, as
    each is first touched. GPU memory is unaffected: torch caches it itself.

    Returns:
        bool: Whether it is set. Not with another C library, nor where the environment sets the allocator
        (any ``MALLOC_...``, ``GLIBC_TUNABLES``) or puts another in its place (``LD_PRELOAD``).
    """
    chosen = any(name.startswith('MALLOC_') or name in ('GLIBC_TUNABLES', 'LD_PRELOAD') for name in os.environ)
    if chosen or platform.libc_ver()[0] != 'glibc':
        return False
    libc = ctypes.CDLL(None)
    # All blocks come from the heap, and its free end is not given back (-1: never).
    return bool(libc.mallopt(M_TRIM_THRESHOLD, -1)) and bool(libc.mallopt(M_MMAP_MAX, 0))
