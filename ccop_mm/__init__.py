"""CCOP, object-level self-supervised pre-training, as an OpenMMLab plugin.

``custom_imports = dict(imports=['ccop_mm'])`` in a config patches the upstream libraries and registers all modules.
With the environment variable ``CCOP_MM_LAZY=1`` the import does neither and takes milliseconds instead of seconds,
which suits tools/propose.py; :func:`register_all_modules` can be called later.
"""

import os
import sys

from .version import __version__

__all__ = ['__version__', 'register_all_modules']


def register_all_modules() -> None:
    """Patches the upstream libraries and registers the models, datasets, transforms, hooks and initializers.

    Raises:
        ImportError: An upstream library cannot be imported.
    """
    try:
        from . import compat

        compat.apply_patches()
        from . import datasets, debug, engine, models, weights  # noqa: F401
    except Exception as error:
        raise ImportError(
            f'ccop_mm cannot be imported: {type(error).__name__}: {error}\nRun `python -m ccop_mm.doctor` for the fix'
        ) from error


# `python -m ccop_mm.doctor` imports this package first and must run where upstream libraries cannot be imported. Until
# Python has located the module to run, sys.argv starts with '-m'.
_RUNS_DOCTOR = sys.argv[:1] == ['-m'] and sys.orig_argv[-1].endswith('ccop_mm.doctor')

# The console command imports this package, and then becomes another process (ccop_mm/cli.py).
_RUNS_COMMAND = os.path.basename(sys.argv[0]) == 'ccop-mm' if sys.argv else False

if os.environ.get('CCOP_MM_LAZY') != '1' and not (_RUNS_DOCTOR or _RUNS_COMMAND):
    register_all_modules()
