"""Configures the memory allocator of the C library for training on a CPU."""

import ctypes
import os
import platform

# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Makes this process and its forked children reuse freed memory instead of returning it to the operating system.

    By default, glibc requests every block above 32 MB from the operating system and returns it when it is freed. Each
    training step allocates blocks of the same sizes, so the system would clear the same pages in every step, one page
    fault at a time. GPU memory is not affected: torch has its own caching allocator.

    Returns:
        bool: Whether the allocator was configured. It is not for C libraries other than glibc, and not if the
        environment configures the allocator (any ``MALLOC_...``, ``GLIBC_TUNABLES``) or replaces it (``LD_PRELOAD``).
    """
    configured = any(name.startswith('MALLOC_') or name in ('GLIBC_TUNABLES', 'LD_PRELOAD') for name in os.environ)
    if configured or platform.libc_ver()[0] != 'glibc':
        return False
    libc = ctypes.CDLL(None)
    # Allocate every block on the heap and never trim its top (-1).
    return bool(libc.mallopt(M_TRIM_THRESHOLD, -1)) and bool(libc.mallopt(M_MMAP_MAX, 0))
