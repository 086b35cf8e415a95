"""Reading and writing of checkpoint files; code in a file is never executed."""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from mmengine.dist import barrier, get_rank
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_torchvision_models
from torch import Tensor

from ccop_mm import compat
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write
from ccop_mm.weights.model_fit import strip_module_prefix

SAFETENSORS = '.safetensors'
SUFFIXES = ('.pth', '.pt', SAFETENSORS)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint onto the CPU; see :func:`read_checkpoint`."""
    return read_checkpoint(path)[0]


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the tensors and the metadata of a checkpoint onto the CPU.

    Args:
        path (str | Path): File, ``https://`` URL or ``torchvision://`` name. The file is a dict with a ``state_dict``
            (in detectron2, ``model``) entry, a bare state dict, or a safetensors file.

    Returns:
        tuple[dict[str, Tensor], dict]: State dict and ``meta``; ``meta`` is empty if the file has none.

    Raises:
        InputError: The file is missing, damaged, not a checkpoint, contains pickled code, or does not match its
            checksum.
    """
    path = str(path)
    with _unreadable_as_input_error(path):
        content, meta = _read(path)
    state = content.get('state_dict', content.get('model', content)) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f'{path} does not contain a state dict: use a checkpoint written by tools/train.py')
    if 'ccop_mm' in meta and meta.get('checksum') != checksum(state):
        raise InputError(f'{path}: the tensors do not match the checksum in the file: export or download it again')
    return state, meta


@contextlib.contextmanager
def _unreadable_as_input_error(path: str) -> Iterator[None]:
    """Raises an :class:`InputError` that names the file for every error of reading it."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(
            f'checkpoint {path} does not exist: run the pre-training first (python tools/train.py '
            'configs/ccop/CONFIG.py), or set another file (--cfg-options model.init_cfg.checkpoint=FILE)'
        ) from error
    except (URLError, TimeoutError) as error:
        raise InputError(
            f'{path} cannot be downloaded ({error}): download it manually and use the local file'
        ) from error
    except Exception as error:  # unpickling a damaged file may raise anything
        if isinstance(error, KeyError) and '://' in path:
            raise InputError(f'{path}: mmengine has no weights of this name; use the path or URL of a file') from error
        if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str):
            raise InputError(f'{path} cannot be loaded as a checkpoint: it lacks the entry {error}') from error
        refused = re.search(r'GLOBAL (\S+)', str(error))  # how torch names the object that it refused
        damage = f'truncated, damaged or of another type ({type(error).__name__})'
        reason = f'contains code ({refused[1]})' if refused else f'is {damage}'
        raise InputError(f'{path} cannot be loaded as a checkpoint: the file {reason}') from error


def read_run_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a checkpoint exactly as mmengine's Runner does to test, to resume or for ``load_from``.

    In contrast to :func:`read_checkpoint`, formats that the Runner does not load are refused, such as the
    ``model`` entry of detectron2.

    Args:
        path (str | Path): File or address, as in ``load_from``.

    Returns:
        tuple[dict, dict]: State dict with the keys that the model receives, and the content of the file.

    Raises:
        InputError: The file is missing, damaged, contains pickled code, or does not contain a state dict.
    """
    path = str(path)
    if '://' not in path and not Path(path).expanduser().is_file():
        raise InputError(f'{path} does not exist')
    with _unreadable_as_input_error(path):
        content = CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')
    state = content.get('state_dict', content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise InputError(f'{path} does not contain a state dict')
    for key, value in state.items():
        if not isinstance(value, Tensor) and not str(key).endswith('_extra_state'):
            raise InputError(f'{path} does not contain a state dict: the value of {key} is not a tensor')
    return strip_module_prefix(state), content


def _read(path: str) -> tuple[Any, dict[str, Any]]:
    """Returns the content of a file and its ``meta``."""
    if path.endswith(SAFETENSORS) and '://' not in path:
        from safetensors import safe_open

        with safe_open(path, 'pt') as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118  no mapping
    content = _download(path) if path.startswith(('http://', 'https://', 'torchvision://')) else None
    if content is None:
        content = CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')
    meta = content.get('meta') if isinstance(content, dict) else None
    if meta is None and isinstance(content, dict):  # the official MoCo files store these beside the weights
        meta = {key: content[key] for key in ('epoch', 'arch') if isinstance(content.get(key), (int, str))}
    return content, meta if isinstance(meta, dict) else {}


def _download(address: str) -> Any:
    """Downloads a checkpoint on rank 0 first, like mmengine, but loads it with ``weights_only=True``."""
    if address.startswith('torchvision://'):
        name, models = address.removeprefix('torchvision://'), get_torchvision_models()
        if name not in models:
            raise InputError(f'torchvision has no weights named {name}: write for example torchvision://resnet50')
        address = models[name]
    content = None
    for is_turn in (get_rank() == 0, get_rank() != 0):
        if is_turn:
            content = compat.load_address(address, map_location='cpu', progress=False)
        barrier()
    return content


def checksum(state: Mapping[str, Tensor]) -> str:
    """Computes a BLAKE2b digest of the names, types, shapes and values of tensors, in the order of the names.

    Args:
        state (Mapping[str, Tensor]): Tensors on any device.

    Returns:
        str: 16 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_suffix(path: str | Path) -> None:
    """Checks that the suffix of an output file is one of :data:`SUFFIXES`.

    Raises:
        InputError: The suffix is a different one.
    """
    if Path(path).suffix not in SUFFIXES:
        raise InputError(f'{path}: the suffix selects the file type and must be one of {", ".join(SUFFIXES)}')


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, str], key: str = 'state_dict'
) -> None:
    """Writes tensors and string metadata to a file atomically.

    Args:
        path (str | Path): Output file: ``.safetensors``, or ``.pth`` or ``.pt`` for a ``torch.save`` file that
            ``torch.load(weights_only=True)`` reads without allow-listed types.
        tensors (Mapping[str, Tensor]): Name -> tensor.
        meta (Mapping[str, str]): Metadata of the file, to which the :func:`checksum` of the tensors is added.
        key (str): Entry of a torch file for the tensors; the metadata is stored under ``meta``.
    """
    check_suffix(path)
    # Cloned, because torch.save would write the whole storage that a tensor is a view of.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    meta = {**meta, 'checksum': checksum(tensors)}
    with atomic_write(path) as file:
        if Path(path).suffix == SAFETENSORS:
            from safetensors.torch import save

            # Other readers of safetensors files expect 'format'.
            file.write(save(tensors, {**meta, 'format': 'pt'}))
        else:
            torch.save({'meta': meta, key: tensors}, file)
