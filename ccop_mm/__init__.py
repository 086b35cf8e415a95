"""CCOP, object-level self-supervised pre-training, as an OpenMMLab plugin.

Importing this package makes the host libraries importable and registers its parts:
``custom_imports = dict(imports=['ccop_mm'])``.
"""

import sys

from .version import __version__

__all__ = ['__version__']

# `python -m ccop_mm.doctor` imports this package first, and has to run where the hosts cannot be imported. Until Python
# has found the module, sys.argv begins with '-m'.
if sys.argv[:1] != ['-m'] or not sys.orig_argv[-1].endswith('ccop_mm.doctor'):
    try:
        from . import hosts

        hosts.mend()
        from . import datasets, engine, evaluation, models, weights  # noqa: F401
    except Exception as error:
        raise ImportError(
            f'ccop_mm cannot be used here: {type(error).__name__}: {error}\n`python -m ccop_mm.doctor` names the cure'
        ) from error
