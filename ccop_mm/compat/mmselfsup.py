"""mmselfsup and mmcls, both frozen upstream: version checks and registries."""

import importlib
import sys
from pathlib import Path
from typing import Any

from ccop_mm.compat.attributes import swap_attribute


def import_frozen_packages() -> None:
    """Imports mmcls and mmselfsup with an mmcv that is newer than they accept.

    Problem (mmcls 1.0.0rc6, mmselfsup 1.0.0; both are the last releases):
        On import they assert ``mmcv < 2.1.0``, although they also run with later versions.

    Fix:
        Set ``mmcv.__version__`` to 2.0.1, the last accepted release, while these two packages are imported.

    Remove when:
        ccop_mm no longer depends on mmselfsup.
    """
    import mmcv

    for package in ('mmcls', 'mmselfsup'):
        if package not in sys.modules:
            with swap_attribute(mmcv, '__version__', '2.0.1'):
                importlib.import_module(package)
            _attach_submodules(package)


def _attach_submodules(package: str) -> None:
    """Sets submodules that an earlier, failed import left in ``sys.modules`` as attributes of their parents."""
    for name, module in list(sys.modules.items()):
        parent, _, child = name.rpartition('.')
        if name.startswith(f'{package}.') and parent in sys.modules and not hasattr(sys.modules[parent], child):
            setattr(sys.modules[parent], child, module)


def drop_missing_locations() -> None:
    """Removes locations that do not exist from mmselfsup's registries.

    Problem (mmselfsup 1.0.0):
        Its registries name modules that the package does not contain, such as ``mmselfsup.engine.runner``. mmengine
        imports all locations of a registry at the first lookup, so building a Runner in mmselfsup's scope fails.

    Fix:
        Keep only the locations that exist as a file or folder.

    Remove when:
        ccop_mm no longer depends on mmselfsup.
    """
    import mmselfsup.registry
    from mmengine.registry import Registry

    root = Path(mmselfsup.__file__).parent.parent
    for registry in vars(mmselfsup.registry).values():
        if isinstance(registry, Registry) and registry.scope == 'mmselfsup':
            # Checked on disk, because importlib.util.find_spec would import the parent packages, i.e. all of mmselfsup.
            paths = {name: root.joinpath(*name.split('.')) for name in registry._locations}
            registry._locations = [
                name for name, path in paths.items() if path.is_dir() or path.with_suffix('.py').is_file()
            ]


def sum_gathered_gradients() -> None:
    """Makes mmselfsup's ``GatherLayer`` sum the gradients of all processes.

    Problem (mmselfsup 1.0.0):
        Every process computes SimCLR's loss on the embeddings of all processes. The backward pass of the layer that
        gathers them only keeps the gradient of the own loss, and DDP divides by the number of processes: the model's
        gradients are those of a single process, divided by the number of processes.

    Fix:
        Sum the gradients that all processes computed for the own embeddings, as is the derivative of gathering.

    Remove when:
        ccop_mm no longer depends on mmselfsup.
    """
    import torch
    from mmengine.dist import all_reduce, get_rank
    from mmselfsup.models.utils.gather_layer import GatherLayer

    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        total = torch.stack(grads)
        all_reduce(total)
        return total[get_rank()]

    GatherLayer.backward = staticmethod(backward)
