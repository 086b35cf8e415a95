"""One training step in a file, to be run again elsewhere."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, LabelData, PixelData
from mmselfsup.structures import SelfSupDataSample
from torch import Tensor

from ccop_mm.errors import InputError
from ccop_mm.fileio import atomic_write

FORMAT = 'ccop_mm step with a loss that is not finite, version 1'

#: Structures that a batch may hold. A dump names them and is not trusted, so no other class is looked up.
ELEMENTS = {cls.__name__: cls for cls in (BaseDataElement, InstanceData, LabelData, PixelData, SelfSupDataSample)}


def images_of(batch: dict) -> list[dict]:
    """Id and path of each image of a batch; None where its data sample does not tell."""
    samples = batch.get('data_samples') if isinstance(batch, dict) else None
    metas = [sample.metainfo for sample in samples or []]
    return [dict(img_id=meta.get('img_id'), img_path=meta.get('img_path')) for meta in metas]


def write_dump(path: Path, **content) -> None:
    """Writes a step, so that it is whole or absent, and ``torch.load(weights_only=True)`` reads it.

    Args:
        path (Path): The file.
        **content: What :class:`ccop_mm.engine.finite_loss_hook.FiniteLossHook` collects.
    """
    with atomic_write(path) as file:
        torch.save(dict(format=FORMAT, **{name: _pack(value) for name, value in content.items()}), file)


def _pack(value):
    """Tensors on the CPU and plain Python values in the place of anything; what has no such form becomes its repr."""
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


def _unpack(value):
    """The batch again. Arrays stay tensors."""
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


def read_dump(path: str | Path) -> dict:
    """Reads what :func:`write_dump` wrote; nothing in the file is executed.

    Raises:
        InputError: The file is absent, damaged or of another kind.
    """
    if not Path(path).is_file():
        raise InputError(f'no dump {path}: name a nonfinite_iter_N_rank_R.pth of a work folder')
    try:
        dump = torch.load(path, map_location='cpu', weights_only=True)
        if isinstance(dump, dict) and dump.get('format') == FORMAT:
            return dict(dump, batch=_unpack(dump['batch']))
    except Exception as error:  # broken bytes may raise anything
        reason = next(iter(str(error).splitlines()), '')
        raise InputError(f'{path} does not read as a dump ({type(error).__name__}: {reason})') from error
    raise InputError(f'{path} is not a dump of a step: name a nonfinite_iter_N_rank_R.pth of a work folder')
