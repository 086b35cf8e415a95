"""Backbone and FPN from one format to another: what tools/export.py and tools/import.py do."""

from pathlib import Path

import torch
from mmdet.models import FPN, ResNet

from ccop_mm.errors import InputError
from ccop_mm.version import __version__
from ccop_mm.weights.files import check_suffix, checksum, read_checkpoint, write_tensors
from ccop_mm.weights.formats import SOURCES, TARGETS, has_fpn, to_mmdet
from ccop_mm.weights.keys import pair_keys, resnet_depth, shapes


def encoder_shapes(state):
    """Shape of every tensor that a ResNet, and an FPN if there is one, of the size of ``state`` have.

    Args:
        state (Mapping[str, Tensor]): Tensors under mmdet's names.

    Returns:
        dict[str, tuple[int, ...]]: The whole of it, whatever ``state`` lacks.

    Raises:
        InputError: Blocks or the first convolution are missing, so that the size cannot be told.
    """
    depth = resnet_depth(state)
    stem = state.get('backbone.conv1.weight')
    if depth is None or stem is None:
        raise InputError('its backbone is no whole ResNet-18, -34, -50, -101 or -152')
    with torch.device('meta'):
        backbone = ResNet(depth, base_channels=len(stem), norm_eval=False)
        expected = {f'backbone.{key}': shape for key, shape in shapes(backbone.state_dict()).items()}
        if has_fpn(state):
            widths = [tensor.shape[0] for key, tensor in state.items() if key.startswith('neck.') and tensor.dim()]
            norm = any('.bn.' in key for key in state if key.startswith('neck.'))
            channels = [len(stem) * 2**stage * (4 if depth >= 50 else 1) for stage in range(4)]
            neck = FPN(channels, widths[0], num_outs=4, norm_cfg=dict(type='BN') if norm else None)
            expected.update({f'neck.{key}': shape for key, shape in shapes(neck.state_dict()).items()})
    return expected


def convert(checkpoint, to, out):
    """Writes backbone and FPN of a checkpoint under other names; nothing may be missing, left over or misshapen.

    Args:
        checkpoint (str | Path): A file of any format in :data:`ccop_mm.weights.formats.SOURCES`.
        to (str): One of :data:`ccop_mm.weights.formats.TARGETS`. torchvision and timm have no FPN: it is left out.
        out (str | Path): The file to write, by :func:`ccop_mm.weights.files.write_tensors`.

    Returns:
        str: One line that says what was written.

    Raises:
        InputError: The file cannot be read, its format is not known, or it is not whole.
    """
    check_suffix(out)
    if Path(out).exists() and Path(checkpoint).exists() and Path(out).samefile(checkpoint):
        raise InputError(f'{out} is the checkpoint itself: name another file to write')
    state, meta = read_checkpoint(checkpoint)
    try:
        name, encoder = to_mmdet(state)
        pair_keys(encoder_shapes(encoder), shapes(encoder))
    except InputError as error:
        raise InputError(f'{checkpoint}: {error}') from None
    renamed = {TARGETS[to](key): tensor for key, tensor in encoder.items()}
    renamed.pop(None, None)
    key = 'model' if to == 'detectron2' else 'state_dict'  # where detectron2's checkpointer looks
    write_tensors(out, renamed, describe(checkpoint, name, to, encoder, meta), key)
    parameters = sum(tensor.numel() for key, tensor in renamed.items() if not _is_buffer(key))
    left_out = has_fpn(encoder) and len(renamed) < len(encoder)
    parts = f'ResNet-{resnet_depth(encoder)}{" and FPN" if has_fpn(encoder) and not left_out else ""}'
    epoch = f', epoch {meta["epoch"]}' if 'epoch' in meta else ''
    return (
        f'{out}: {parts} under the names of {to}, {len(renamed)} tensors ({parameters:,} parameters, '
        f'blake2b {checksum(renamed)}), from {SOURCES[name].title}{epoch}{", its FPN left out" if left_out else ""}'
    )


def _is_buffer(key):
    return key.endswith(('running_mean', 'running_var', 'num_batches_tracked'))


def describe(checkpoint, source, to, encoder, meta):
    """What an exported file says of itself, as strings, which any format can hold.

    Args:
        checkpoint (str | Path): Where the tensors come from; its name is told, not its folder.
        source (str): The format of that file.
        to (str): The format of the new file.
        encoder (Mapping[str, Tensor]): All tensors, under mmdet's names.
        meta (dict): What ``checkpoint`` said of itself; an export's own description is handed on.

    Returns:
        dict[str, str]: ``names``, ``source``, ``source_format``, ``encoder_checksum`` (under mmdet's names, as the
            initializer logs it), ``ccop_mm`` (the version), and where known ``epoch``, ``iter`` and ``config``.
    """
    known = {key: meta[key] for key in ('epoch', 'iter', 'arch', 'config') if isinstance(meta.get(key), (int, str))}
    if isinstance(meta.get('cfg'), str):  # mmengine's
        known['config'] = meta['cfg']
    return {
        'names': to,
        'source': Path(checkpoint).name,
        'source_format': source,
        'encoder_checksum': checksum(encoder),
        'ccop_mm': __version__,
        **{key: str(value) for key, value in known.items()},
    }
