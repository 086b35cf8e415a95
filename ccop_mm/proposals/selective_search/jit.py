"""Compilation of the kernels of this package."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

from ccop_mm.utils.errors import InputError

try:
    import numba
except ImportError as error:
    raise InputError(
        f"engine 'native' requires numba, which cannot be imported ({error}): pip install numba, "
        "or choose engine 'opencv'"
    ) from None

_announced = False


def kernel(*signatures: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiles a function with ``numba.njit`` for fixed argument types and caches the machine code on disk.

    Because the types are given, a kernel is compiled, or loaded from the cache, exactly once: when its module is
    imported. numba's cache is in ``NUMBA_CACHE_DIR`` if that is set, otherwise beside the source file or, for a
    read-only package, in the user's cache folder. If none of them is writable, every process compiles the kernels, and
    a warning is issued.

    The cache is invalidated when the file of the kernel changes, but not when another file does. A kernel must
    therefore call only kernels of its own file.

    Args:
        *signatures (str): Argument and return types; none for a helper that other kernels call.

    Returns:
        Callable: Decorator.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        # error_model: division by zero gives inf as in C++. Without fastmath, arithmetic is not reordered or fused.
        options: Any = dict(error_model='numpy')
        try:
            compiled = numba.njit(cache=bool(signatures), **options)(function)
        except RuntimeError as error:
            if 'cannot cache' not in str(error):
                raise
            warnings.warn(
                'no cache folder of numba is writable, so that each process compiles selective search: '
                'set NUMBA_CACHE_DIR to a writable folder',
                stacklevel=2,
            )
            compiled = numba.njit(**options)(function)
        for signature in signatures:
            compiled.compile(signature)
            _announce_compilation(compiled)
        if signatures:
            compiled.disable_compile()
        return compiled

    return decorate


def _announce_compilation(compiled: Any) -> None:
    """Prints a message once, when the first kernel is not in the cache."""
    global _announced
    if not _announced and not sum(compiled.stats.cache_hits.values()):
        _announced = True
        print('compiling selective search for this machine: once, about 20 s', file=sys.stderr)
