"""Checkpoint files: tensors in and out, and nothing that could run."""

import hashlib
import re
from pathlib import Path
from urllib.error import URLError

import torch
from mmengine.dist import barrier, get_rank
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_torchvision_models

from ccop_mm import hosts
from ccop_mm.errors import InputError
from ccop_mm.fileio import atomic_write

SAFETENSORS = '.safetensors'
SUFFIXES = ('.pth', '.pt', SAFETENSORS)


def read_state_dict(path):
    """Reads the tensors of a checkpoint onto the CPU; see :func:`read_checkpoint`."""
    return read_checkpoint(path)[0]


def read_checkpoint(path):
    """Reads the tensors of a checkpoint onto the CPU, and what the file says of itself.

    Args:
        path (str): File, ``https://`` address or ``torchvision://`` name of a checkpoint with a ``state_dict`` (or a
            ``model``, as detectron2 has it), or of a bare state dict; or a safetensors file.

    Returns:
        tuple[dict[str, Tensor], dict]: Name -> tensor; and ``meta``, empty if the file has none.

    Raises:
        InputError: The file is absent, damaged, no checkpoint, or holds pickled code; or its tensors are not those that
            its checksum is of.
    """
    path = str(path)
    try:
        content, meta = _read(path)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(
            f'no checkpoint {path}: pre-train first (python tools/train.py configs/ccop/CONFIG.py), '
            'or name another file (--cfg-options model.init_cfg.checkpoint=FILE)'
        ) from error
    except (URLError, TimeoutError) as error:
        raise InputError(f'{path} cannot be downloaded ({error}): fetch it by other means and name the file') from error
    except Exception as error:  # there is hardly one that unpickling a damaged file does not raise
        code = re.search(r'GLOBAL (\S+)', str(error))  # torch's name for what it refused
        damage = f'is cut short, damaged or of another kind ({type(error).__name__})'
        fault = f'holds code ({code[1]})' if code else damage
        raise InputError(f'{path} is no checkpoint of tensors and was not loaded: it {fault}') from error
    state = content.get('state_dict', content.get('model', content)) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise InputError(f'{path} holds no state dict: name a checkpoint that tools/train.py wrote')
    if 'ccop_mm' in meta and meta.get('checksum') != checksum(state):
        raise InputError(f'{path} holds other tensors than its checksum is of: export or download it again')
    return state, meta


def _read(path):
    """The content of the file and its ``meta``."""
    if path.endswith(SAFETENSORS) and '://' not in path:
        from safetensors import safe_open

        with safe_open(path, 'pt') as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118  no mapping
    content = _download(path) if path.startswith(('http://', 'https://', 'torchvision://')) else None
    if content is None:
        content = CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')
    meta = content.get('meta') if isinstance(content, dict) else None
    if meta is None and isinstance(content, dict):  # MoCo's own files say it beside the weights
        meta = {key: content[key] for key in ('epoch', 'arch') if isinstance(content.get(key), (int, str))}
    return content, meta if isinstance(meta, dict) else {}


def _download(address):
    """As mmengine downloads, one rank first, but with torch's guard on, which mmengine leaves off for addresses."""
    if address.startswith('torchvision://'):
        name, models = address.removeprefix('torchvision://'), get_torchvision_models()
        if name not in models:
            raise InputError(f'torchvision has no weights {name}: write torchvision://resnet50, for instance')
        address = models[name]
    content = None
    for turn in (get_rank() == 0, get_rank() != 0):
        if turn:
            content = hosts.load_address(address, map_location='cpu', progress=False)
        barrier()
    return content


def checksum(state):
    """A short blake2b over names, types, shapes and values, in the order of the names.

    Args:
        state (Mapping[str, Tensor]): Tensors on any device.

    Returns:
        str: 16 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_suffix(path):
    """Refuses a name that does not tell how to write.

    Raises:
        InputError: The suffix is none of :data:`SUFFIXES`.
    """
    if Path(path).suffix not in SUFFIXES:
        raise InputError(f'{path}: the name must end in one of {", ".join(SUFFIXES)}, which tells how to write it')


def write_tensors(path, tensors, meta, key='state_dict'):
    """Writes tensors and strings, whole or not at all.

    Args:
        path (str | Path): ``.safetensors``, or ``.pth`` or ``.pt`` for a file of ``torch.save``, which torch reads with
            ``weights_only=True`` and no exception to it.
        tensors (dict[str, Tensor]): Name -> tensor.
        meta (dict[str, str]): What the file says of itself; the :func:`checksum` is added.
        key (str): Where a torch file holds the tensors; ``meta`` stands beside it.
    """
    check_suffix(path)
    # Plain, dense, and none a part of a larger storage, which would be saved with it.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    meta = {**meta, 'checksum': checksum(tensors)}
    with atomic_write(path) as file:
        if Path(path).suffix == SAFETENSORS:
            from safetensors.torch import save

            # 'format' is what other readers of such files look for.
            file.write(save(tensors, {**meta, 'format': 'pt'}))
        else:
            torch.save({'meta': meta, key: tensors}, file)
