"""How the kernels of this package are compiled."""

import sys
import warnings

from ccop_mm.errors import InputError

try:
    import numba
except ImportError as error:
    raise InputError(
        f"engine 'native' needs numba, which cannot be imported ({error}): pip install numba, or choose engine 'opencv'"
    ) from None

_announced = False


def kernel(*signatures):
    """``numba.njit`` for fixed argument types, the machine code kept on disk.

    Types are given, so that a kernel is compiled, or read from disk, when its module is imported, and exists once only.
    numba keeps machine code beside the source, else (a read-only package) in the user's cache folder; in
    ``NUMBA_CACHE_DIR`` if that is set. Where it may write nowhere, every process compiles for itself, and a warning
    says so.

    Machine code is renewed when the kernel's own file changes. So a kernel may call those of its own file only.

    Args:
        *signatures (str): Argument and return types; none for a helper that kernels call.
    """

    def compile_(function):
        # Division by zero gives inf as in C++. Arithmetic stays IEEE: nothing is reordered or fused.
        options = dict(error_model='numpy')
        try:
            compiled = numba.njit(cache=bool(signatures), **options)(function)
        except RuntimeError as error:
            if 'cannot cache' not in str(error):
                raise
            warnings.warn(
                'numba may not write to any cache folder, so each process compiles selective search anew: '
                'set NUMBA_CACHE_DIR to a folder that you may write to',
                stacklevel=2,
            )
            compiled = numba.njit(**options)(function)
        for signature in signatures:
            compiled.compile(signature)
            _announce(compiled)
        if signatures:
            compiled.disable_compile()
        return compiled

    return compile_


def _announce(compiled):
    """Says once, when a kernel was not found on disk, that the others will take a while."""
    global _announced
    if not _announced and not sum(compiled.stats.cache_hits.values()):
        _announced = True
        print('compiling selective search for this machine: once, about 20 s', file=sys.stderr)
