"""Patches for upstream libraries, one file per library. No other package refers to upstream versions.

:func:`apply_patches` runs on ``import ccop_mm``. A patch changes nothing if its problem is absent. It may be applied
repeatedly, before or after the upstream libraries are imported. The docstring of each patch states the problem with the
versions that have it, the fix, and when the patch can be removed.
"""

from collections.abc import Callable

from .cpu_config import check_precision, prepare_config
from .mmdet import exchange_names_as_json
from .mmengine import (
    guard_downloads,
    ignore_config_text_on_resume,
    initialize_on_cpu,
    locate_packages,
    remove_unsafe_fallback,
    resolve_own_configs,
    resume_within_epoch,
    resume_without_loading,
)
from .mmselfsup import drop_missing_locations, import_frozen_packages, sum_gathered_gradients
from .pycocotools import complete_annotations, match_annotation_zero, number_classes_by_name
from .torch import allow_checkpoint_types, load_address
from .torchvision import define_torchvision_schemas

__all__ = ['PATCHES', 'apply_patches', 'check_precision', 'load_address', 'prepare_config']

#: All patches in the order of application: mmselfsup imports torchvision, and the rest imports mmengine.
PATCHES: tuple[Callable[[], None], ...] = (
    define_torchvision_schemas,
    import_frozen_packages,
    drop_missing_locations,
    sum_gathered_gradients,
    allow_checkpoint_types,
    remove_unsafe_fallback,
    guard_downloads,
    ignore_config_text_on_resume,
    initialize_on_cpu,
    resume_within_epoch,
    resume_without_loading,
    locate_packages,
    resolve_own_configs,
    exchange_names_as_json,
    number_classes_by_name,
    match_annotation_zero,
    complete_annotations,
)


def apply_patches() -> None:
    """Applies all patches in :data:`PATCHES`.

    Raises:
        Exception: An upstream library could not be imported for a reason that no patch handles.
    """
    for patch in PATCHES:
        patch()
