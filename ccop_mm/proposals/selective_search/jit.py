"""How the kernels of this package are compiled."""

import functools
import warnings

from ccop_mm.errors import InputError

try:
    import numba
except ImportError as error:
    raise InputError(
        f"engine 'native' needs numba, which cannot be imported ({error}): pip install numba, or choose engine 'opencv'"
    ) from None


def kernel(*signatures):
    """``numba.njit`` for fixed argument types, the machine code kept on disk.

    Types are given, so that a kernel is compiled, or read from disk, when its module is imported, and exists once only.
    numba keeps machine code beside the source, else (read-only package) in the user's cache folder, or in
    ``NUMBA_CACHE_DIR``. Where it may write nowhere, every process compiles for itself, and a warning says so.

    A cached kernel is renewed when *its own* file changes. So a kernel may call those of its own file only.

    Args:
        *signatures (str): Argument and return types; none for a helper that other kernels call.
    """

    def compile_(function):
        # Division by zero gives inf as in C++ and costs no branch; arithmetic stays IEEE: no reordering, no fused steps.
        decorator = functools.partial(numba.njit, list(signatures) or None, error_model='numpy')
        try:
            return decorator(cache=True)(function)
        except RuntimeError as error:
            if 'cannot cache' not in str(error):
                raise
            warnings.warn(
                'numba may write to no cache folder, so each process compiles selective search anew: '
                'set NUMBA_CACHE_DIR to a folder that you may write to',
                stacklevel=2,
            )
            return decorator()(function)

    return compile_
