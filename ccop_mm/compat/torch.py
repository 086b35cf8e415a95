"""torch: checkpoint loading with ``weights_only=True``, from files and from URLs."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch


def allow_checkpoint_types() -> None:
    """Allow-lists the types in an mmengine checkpoint for ``torch.load(weights_only=True)``.

    Problem (torch >= 2.6; mmengine 0.10.7, onedl-mmengine 0.10.12):
        An mmengine checkpoint contains the logged history: ``HistoryBuffer`` objects, which hold NumPy arrays and refer
        to their statistics methods through ``getattr``. torch refuses these types by default. As a result, mmengine
        cannot resume from its own checkpoints; onedl-mmengine allow-lists the unrestricted ``getattr``.

    Fix:
        Allow ``HistoryBuffer``, NumPy arrays and numeric scalars (under the module names of NumPy 1 and of NumPy 2,
        because checkpoints move between the two), and replace ``getattr`` by :func:`statistics_method`.

    Remove when:
        mmengine registers its own types and does not pickle ``getattr``.
    """
    import numpy as np
    from mmengine.logging import HistoryBuffer

    codes = np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?'
    allowed: list[Any] = [HistoryBuffer, np.ndarray, np.dtype, *{type(np.dtype(code)) for code in codes}]
    for value in (np.empty(0), np.float64(0)):
        # NumPy's `_reconstruct` and `scalar`; their module depends on the NumPy version.
        rebuild: Any = value.__reduce__()[0]
        allowed += [(rebuild, f'numpy.{core}.multiarray.{rebuild.__name__}') for core in ('core', '_core')]
    allowed.append((statistics_method, 'builtins.getattr'))
    torch.serialization.add_safe_globals(allowed)


def statistics_method(owner: object, name: str) -> Callable:
    """Restricted ``getattr`` for checkpoints: returns a statistics method of ``HistoryBuffer`` and nothing else.

    Args:
        owner (object): Object whose attribute the checkpoint requests.
        name (str): Name of the requested attribute.

    Raises:
        pickle.UnpicklingError: ``owner`` is not ``HistoryBuffer`` or ``name`` is not one of its statistics.
    """
    from mmengine.logging import HistoryBuffer

    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f'a checkpoint may not access attribute {name!r} of {owner!r}')


def load_weights_only(file: Any, map_location: Any = None, weights_only: bool = True) -> Any:
    """Calls ``torch.load(weights_only=True)``.

    Args:
        file (str | Path | BinaryIO): Checkpoint file.
        map_location (optional): As in ``torch.load``.
        weights_only (bool): Ignored; mmengine's loader passes it.
    """
    # Repeated here because leaving a `torch.serialization.safe_globals()` block also removes types allowed before it.
    allow_checkpoint_types()
    return torch.load(file, map_location=map_location, weights_only=True)


def load_address(address: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True) -> Any:
    """Downloads a checkpoint, or reads it from torch's cache, and loads it with ``weights_only=True``.

    torch caches a download under the last component of its URL. Every run has an ``epoch_800.pth``, so the file of one
    URL could be taken for that of another; here the cached name also contains a digest of the whole URL.

    Args:
        address (str): ``http://`` or ``https://`` URL.
        model_dir (str, optional): Cache folder; by default torch's.
        map_location (optional): As in ``torch.load``.
        progress (bool): Whether to show a progress bar.
    """
    digest = hashlib.blake2b(address.encode(), digest_size=8).hexdigest()
    return torch.hub.load_state_dict_from_url(
        address,
        file_name=f'{digest}_{Path(urlparse(address).path).name}',
        model_dir=model_dir,
        map_location=map_location,
        progress=progress,
        weights_only=True,
    )
