"""torchvision: import without its compiled ops."""

import importlib
import sys

import torch

# torch removes the definitions of a Library when the object is garbage-collected.
_LIBRARIES: list[torch.library.Library] = []


def define_torchvision_schemas() -> None:
    """Makes torchvision importable where its compiled ops cannot be loaded.

    Problem (torchvision 0.28):
        The compiled ops only load with the torch build that they were compiled for. With another build (for example
        torchvision's default wheel with a CPU build of torch) ``import torchvision`` fails with
        ``operator torchvision::nms does not exist``: it registers fake kernels for two ops that are not defined.

    Fix:
        If the import fails with this error, define the schemas of the two ops and import again. The ops stay unusable;
        mmselfsup only needs torchvision's transforms, which are pure Python.

    Remove when:
        ``import torchvision`` succeeds without its compiled ops.
    """
    try:
        importlib.import_module('torchvision')
    except RuntimeError as error:
        if 'operator torchvision::' not in str(error):
            raise
        library = torch.library.Library('torchvision', 'FRAGMENT')
        for name in ('nms', 'qnms'):
            library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        _LIBRARIES.append(library)
        # A second import would not set the submodules of the failed one as attributes of the new package.
        for name in [name for name in sys.modules if name.startswith('torchvision.')]:
            del sys.modules[name]
        importlib.import_module('torchvision')
