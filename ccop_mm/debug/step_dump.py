"""Writes and reads dumps of a training step, from which it can be replayed on another machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, LabelData, PixelData
from mmselfsup.structures import SelfSupDataSample
from torch import Tensor

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write
from ccop_mm.utils.text import single_line

FORMAT = 'ccop_mm step with a loss that is not finite, version 1'

#: Structures that a batch may contain. Dumps are not trusted: a class named in a dump is only looked up here.
ELEMENTS = {cls.__name__: cls for cls in (BaseDataElement, InstanceData, LabelData, PixelData, SelfSupDataSample)}


def batch_images(batch: Any) -> list[dict]:
    """Returns ``img_id`` and ``img_path`` of each image in a batch.

    Args:
        batch (Any): Batch of a data loader. Without ``data_samples``, the list is empty.

    Returns:
        list[dict]: One dict per image. Values that are missing in the metainfo of a data sample are None.
    """
    samples = batch.get('data_samples') if isinstance(batch, dict) else None
    metas = [sample.metainfo for sample in samples or []]
    return [dict(img_id=meta.get('img_id'), img_path=meta.get('img_path')) for meta in metas]


def write_dump(path: Path, **content: Any) -> None:
    """Writes a training step atomically, in a form that ``torch.load(weights_only=True)`` accepts.

    Args:
        path (Path): File to write.
        **content: Values collected by :class:`ccop_mm.debug.finite_loss_hook.FiniteLossHook`.
    """
    with atomic_write(path) as file:
        torch.save(dict(format=FORMAT, **{name: _pack(value) for name, value in content.items()}), file)


def _pack(value: Any) -> Any:
    """Converts a value to CPU tensors and plain Python values; replaces everything else by its ``repr``."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, BaseDataElement):
        name = next(cls.__name__ for cls in type(value).__mro__ if cls in ELEMENTS.values())
        return dict(element=name, metainfo=_pack(value.metainfo), data=_pack(dict(value.items())))
    if isinstance(value, Mapping):
        return {key: _pack(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_pack(item) for item in value] if isinstance(value, list) else tuple(map(_pack, value))
    return value if value is None or type(value) in (bool, int, float, str) else repr(value)


def _unpack(value: Any) -> Any:
    """Inverts :func:`_pack` for the structures of a batch. Arrays remain tensors."""
    if isinstance(value, dict) and value.keys() == {'element', 'metainfo', 'data'}:
        element = ELEMENTS[value['element']](metainfo=_unpack(value['metainfo']))
        for name, item in value['data'].items():
            setattr(element, name, _unpack(item))
        return element
    if isinstance(value, dict):
        return {key: _unpack(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_unpack, value))
    return value


def read_dump(path: str | Path) -> dict[str, Any]:
    """Reads a file of :func:`write_dump` without executing any code in it.

    Raises:
        InputError: The file does not exist, is damaged, or is not a dump.
    """
    hint = 'pass a nonfinite_iter_N_rank_R.pth from a work directory'
    if not Path(path).is_file():
        raise InputError(f'dump {path} does not exist; {hint}')
    try:
        dump = torch.load(path, map_location='cpu', weights_only=True)
        if isinstance(dump, dict) and dump.get('format') == FORMAT:
            return dict(dump, batch=_unpack(dump['batch']))
    except Exception as error:  # damaged bytes may raise anything
        raise InputError(
            f'{path} cannot be read as a dump ({type(error).__name__}: {single_line(error)}); {hint}'
        ) from error
    raise InputError(f'{path} is not a dump of a training step; {hint}')
