"""Conversion of backbone and neck between checkpoint formats: the converters in tools/model_converters/."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import format_truncated
from ccop_mm.version import __version__
from ccop_mm.weights.checkpoint_file import check_suffix, checksum, write_tensors
from ccop_mm.weights.encoder_checkpoint import EncoderCheckpoint, read_encoder
from ccop_mm.weights.formats import TARGET_ALIASES, TARGETS
from ccop_mm.weights.key_mapping import PARTS, has_neck, resnet_depth, shapes
from ccop_mm.weights.pairing import is_fpn, lateral_shapes, pair_keys
from ccop_mm.weights.resnet_layout import expected_shapes


def convert(checkpoint: str | Path, to: str, out: str | Path) -> str:
    """Writes backbone and neck of a checkpoint in another format, if they are complete.

    Args:
        checkpoint (str | Path): CCOP checkpoint or a file of any format in
            :data:`ccop_mm.weights.formats.FOREIGN_FORMATS`.
        to (str): Target format, a key of :data:`ccop_mm.weights.formats.TARGETS` (``'mmdet'`` is a former name of
            ``'ccop'``). ``'ccop'`` has mmdet's keys and stores any backbone and neck; the others store a ResNet or
            ResNeXt. torchvision and timm have no neck, so it is omitted.
        out (str | Path): Output file, see :func:`ccop_mm.weights.checkpoint_file.write_tensors`.

    Returns:
        str: One line that describes the output.

    Raises:
        InputError: The file cannot be read, its format or ``to`` is unknown, ``to`` does not have this backbone or
            neck, or tensors are missing, unexpected or of another shape, or have a NaN or infinite value.
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
        is_resnet = check_complete(source)
        check_target(to, encoder, is_resnet)
    except InputError as error:
        raise InputError(f'{checkpoint}: {error}') from None
    converted = {name: tensor for key, tensor in encoder.items() if (name := TARGETS[to](key)) is not None}
    entry = 'model' if to == 'detectron2' else 'state_dict'  # detectron2's checkpointer reads 'model'
    write_tensors(out, converted, export_metadata(checkpoint, source.source_format, to, encoder, source.meta), entry)
    parameters = sum(tensor.numel() for key, tensor in converted.items() if _is_parameter(key, tensor))
    neck = ('FPN' if is_fpn(encoder) else 'neck') if has_neck(encoder) else ''
    neck_omitted = bool(neck) and len(converted) < len(encoder)
    parts = f'{_backbone_title(encoder, is_resnet)}{f" and {neck}" if neck and not neck_omitted else ""}'
    epoch = f', epoch {source.meta["epoch"]}' if 'epoch' in source.meta else ''
    return (
        f'{out}: {parts} in {to} format, {len(converted)} tensors ({parameters:,} parameters, '
        f'blake2b {checksum(converted)}), from {source.title}{epoch}{f", {neck} omitted" if neck_omitted else ""}'
    )


def check_complete(source: EncoderCheckpoint) -> bool:
    """Checks that no tensor of backbone and neck is missing, as far as the file itself shows it.

    The tensors of a ResNet or ResNeXt with an FPN are known from some of them. Those of other architectures are
    compared with the key encoder, if the file contains one.

    Returns:
        bool: Whether the backbone is a ResNet or ResNeXt with torchvision's names.

    Raises:
        InputError: Tensors are missing, unexpected, or of another shape.
    """
    expected = expected_shapes(shapes(source.tensors))
    if expected is not None:
        pair_keys(expected, shapes(source.tensors))
        return True
    if source.source_format != 'ccop':
        raise InputError('the backbone is not a complete ResNet-18, -34, -50, -101 or -152')
    if not any(key.startswith(PARTS[0]) for key in source.tensors):
        raise InputError(f'no key starts with {PARTS[0]}: use a checkpoint of a pre-training run')
    missing = sorted(source.key_encoder - source.tensors.keys())
    if missing:
        raise InputError(
            f'{len(missing)} tensors of the key encoder are missing from the query encoder '
            f'({format_truncated(missing, 2)}): the file is incomplete, use another one'
        )
    return False


def check_target(to: str, encoder: Mapping[str, Tensor], is_resnet: bool) -> None:
    """Checks that a format has the backbone and the neck of an encoder.

    Raises:
        InputError: It has not; the message names the format for any architecture.
    """
    if to == 'ccop':
        return
    if not is_resnet:
        raise InputError(f'{to} format is for ResNet and ResNeXt backbones only: use ccop format (--to ccop)')
    if to == 'detectron2' and has_neck(encoder):
        levels = len(lateral_shapes(shapes(encoder)))
        outputs = {key.split('.')[2] for key in encoder if key.startswith('neck.fpn_convs.')}
        if not is_fpn(encoder) or any(TARGETS[to](key) is None for key in encoder) or (levels, len(outputs)) != (4, 4):
            raise InputError(
                'detectron2 format is for an FPN with the levels P2 to P5 only: use ccop format (--to ccop), or '
                'torchvision format, which omits the neck'
            )


def _backbone_title(encoder: Mapping[str, Tensor], is_resnet: bool) -> str:
    if not is_resnet:
        return 'backbone'
    weight = encoder.get('backbone.layer1.0.conv2.weight')
    grouped = weight is not None and weight.shape[0] != weight.shape[1]
    return f'ResNe{"X" if grouped else ""}t-{resnet_depth(encoder)}'


def _is_parameter(key: str, tensor: Tensor) -> bool:
    """Returns whether a tensor is a parameter: not a running statistic, and not a counter or table of integers."""
    return tensor.is_floating_point() and not key.endswith(('running_mean', 'running_var'))


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
