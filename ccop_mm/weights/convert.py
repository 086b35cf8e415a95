"""Conversion of backbone and FPN between checkpoint formats: the converters in tools/model_converters/."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmdet.models import FPN, ResNet
from torch import Tensor

from ccop_mm.utils.errors import InputError
from ccop_mm.version import __version__
from ccop_mm.weights.checkpoint_file import check_suffix, checksum, write_tensors
from ccop_mm.weights.formats import TARGET_ALIASES, TARGETS
from ccop_mm.weights.key_mapping import has_fpn, pair_keys, resnet_depth, shapes
from ccop_mm.weights.pretrained import read_encoder


def encoder_shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Computes the shapes of all tensors of the ResNet, and of the FPN if present, that a state dict is part of.

    Args:
        state (Mapping[str, Tensor]): Tensors with mmdet's keys.

    Returns:
        dict[str, tuple[int, ...]]: Shapes of the complete encoder, including tensors missing from ``state``.

    Raises:
        InputError: Blocks or the first convolution are missing, so the size of the encoder is unknown.
    """
    depth = resnet_depth(state)
    stem = state.get('backbone.conv1.weight')
    if depth is None or stem is None:
        raise InputError('the backbone is not a complete ResNet-18, -34, -50, -101 or -152')
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


def convert(checkpoint: str | Path, to: str, out: str | Path) -> str:
    """Writes backbone and FPN of a checkpoint in another format, if they are complete.

    Args:
        checkpoint (str | Path): CCOP checkpoint or a file of any format in
            :data:`ccop_mm.weights.formats.FOREIGN_FORMATS`.
        to (str): Target format, a key of :data:`ccop_mm.weights.formats.TARGETS` (``'mmdet'`` is a former name of
            ``'ccop'``). torchvision and timm have no FPN, so it is omitted.
        out (str | Path): Output file, see :func:`ccop_mm.weights.checkpoint_file.write_tensors`.

    Returns:
        str: One line that describes the output.

    Raises:
        InputError: The file cannot be read, its format or ``to`` is unknown, or tensors are missing, unexpected or of
            another shape, or have a NaN or infinite value.
    """
    to = TARGET_ALIASES.get(to, to)
    if to not in TARGETS:
        raise InputError(f'unknown target format {to!r}: use one of {", ".join(TARGETS)}')
    check_suffix(out)
    if Path(out).exists() and Path(checkpoint).exists() and Path(out).samefile(checkpoint):
        raise InputError(f'{out} is the input checkpoint: use another output file')
    source = read_encoder(checkpoint)
    encoder = source.tensors
    try:
        pair_keys(encoder_shapes(encoder), shapes(encoder))
    except InputError as error:
        raise InputError(f'{checkpoint}: {error}') from None
    converted = {name: tensor for key, tensor in encoder.items() if (name := TARGETS[to](key)) is not None}
    entry = 'model' if to == 'detectron2' else 'state_dict'  # detectron2's checkpointer reads 'model'
    write_tensors(out, converted, export_metadata(checkpoint, source.source_format, to, encoder, source.meta), entry)
    parameters = sum(tensor.numel() for key, tensor in converted.items() if not _is_buffer(key))
    fpn_omitted = has_fpn(encoder) and len(converted) < len(encoder)
    parts = f'ResNet-{resnet_depth(encoder)}{" and FPN" if has_fpn(encoder) and not fpn_omitted else ""}'
    epoch = f', epoch {source.meta["epoch"]}' if 'epoch' in source.meta else ''
    return (
        f'{out}: {parts} in {to} format, {len(converted)} tensors ({parameters:,} parameters, '
        f'blake2b {checksum(converted)}), from {source.title}{epoch}{", FPN omitted" if fpn_omitted else ""}'
    )


def _is_buffer(key: str) -> bool:
    return key.endswith(('running_mean', 'running_var', 'num_batches_tracked'))


def export_metadata(
    checkpoint: str | Path, source: str, to: str, encoder: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> dict[str, str]:
    """Collects the metadata of an exported file, as strings, which any format can store.

    Args:
        checkpoint (str | Path): Input file, of which only the name is stored, without its folder.
        source (str): Format of the input file.
        to (str): Format of the output file.
        encoder (Mapping[str, Tensor]): All tensors, with mmdet's keys.
        meta (Mapping): Metadata of the input file. The description of an earlier export is kept.

    Returns:
        dict[str, str]: ``names`` (the output format), ``source``, ``source_format``, ``encoder_checksum`` (with mmdet's
            keys, as the initializers log it), ``ccop_mm`` (the version), and if known ``epoch``, ``iter``, ``arch`` and
            ``config``.
    """
    known = {key: meta[key] for key in ('epoch', 'iter', 'arch', 'config') if isinstance(meta.get(key), (int, str))}
    if isinstance(meta.get('cfg'), str):  # mmengine's entry
        known['config'] = meta['cfg']
    return {
        'names': to,
        'source': Path(checkpoint).name,
        'source_format': source,
        'encoder_checksum': checksum(encoder),
        'ccop_mm': __version__,
        **{key: str(value) for key, value in known.items()},
    }
