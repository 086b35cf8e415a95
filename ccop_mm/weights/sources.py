"""Backbone and neck, with mmdet's keys, of any checkpoint that contains a given backbone."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from mmdet.models import PyramidVisionTransformer, SwinTransformer
from mmdet.models.backbones.pvt import pvt_convert
from mmdet.models.backbones.swin import swin_converter
from torch import Tensor, nn

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import format_truncated, single_line
from ccop_mm.weights.checkpoint_file import read_checkpoint
from ccop_mm.weights.encoder_checkpoint import EncoderCheckpoint
from ccop_mm.weights.formats import FOREIGN_FORMATS, convert_foreign, detect_foreign_format
from ccop_mm.weights.key_mapping import PARTS, add_batch_counters, strip_wrappers
from ccop_mm.weights.model_fit import check_finite

TIMM = 'timm://'

#: Formats in :data:`FOREIGN_FORMATS` whose backbone has other keys than mmdet's.
_RENAMED = ('ccop-release', 'detectron2')

#: Prefixes that are chosen although a key encoder or a teacher has the same names: models of mmdet and mmpretrain, bare
#: backbones, and MoCo.
_PREFERRED_PREFIXES = (PARTS[0], '', 'encoder_q.')

# Norm layers between the backbone and the neck, one per output, which a classifier has for its last map only: Swin and
# ConvNeXt, and in the last alternative PVT.
_OUTPUT_NORM = re.compile(r'norm\d*\.\w+|layers\.\d+\.2\.\w+')
# Tables that the constructor of Swin computes, and that some files contain.
_COMPUTED_TABLES = ('attn_mask', 'relative_position_index')
# Buffers that are learned. The constructor computes all others.
_STATISTICS = ('running_mean', 'running_var', 'num_batches_tracked')


def read_any_encoder(checkpoint: str, backbone: nn.Module, prefix: str | None = None) -> EncoderCheckpoint:
    """Reads backbone, and neck if present, of any checkpoint that contains the tensors of a given backbone.

    Its keys are found under the prefix under which most of them occur, so that detectors, classifiers and bare
    backbones are read alike. The original files of Swin and PVT, detectron2's files, the CCOP authors' release and
    MoCo's files are converted.

    Args:
        checkpoint (str): File, URL, or name with the prefix ``timm://``, ``torchvision://``, ``mmcls://`` or
            ``open-mmlab://``.
        backbone (nn.Module): Backbone that is to be initialized.
        prefix (str, optional): Prefix of the keys of the backbone in the file. If it is given, no neck is read.

    Raises:
        InputError: The file cannot be read, contains no tensor of the backbone, or a tensor has a NaN or infinite
            value.
    """
    state, meta = _read_timm(checkpoint) if checkpoint.startswith(TIMM) else _read_file(checkpoint)
    try:
        state = strip_wrappers(state)
        encoder = _find_encoder(state, meta, backbone, prefix)
        check_finite(encoder.tensors)
    except InputError as error:
        raise InputError(f'{checkpoint}: {error}') from None
    return encoder


def output_norms(keys: Iterable[str], backbone: nn.Module) -> frozenset[str]:
    """Selects the keys of norm layers that the backbone applies to one of its outputs only.

    A classifier has such a layer for its last map at most, and mmdet leaves the others as initialized.

    Args:
        keys (Iterable[str]): Keys with the prefix ``backbone.``.
        backbone (nn.Module): Backbone with these keys.
    """
    modules = dict(backbone.named_modules())
    norms = {name for name, module in modules.items() if 'Norm' in type(module).__name__}
    names = {key: key.removeprefix(PARTS[0]) for key in keys if key.startswith(PARTS[0])}
    return frozenset(
        key for key, name in names.items() if _OUTPUT_NORM.fullmatch(name) and name.rpartition('.')[0] in norms
    )


def computed_buffers(module: nn.Module) -> frozenset[str]:
    """Returns the keys of the buffers that a module's constructor computes, such as index tables."""
    return frozenset(name for name, _ in module.named_buffers() if not name.endswith(_STATISTICS))


def _read_file(checkpoint: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if '://' not in checkpoint and not Path(checkpoint).expanduser().is_file():
        raise InputError(
            f'{checkpoint} does not exist: use the path of a file, an https:// URL, or a name such as '
            'torchvision://resnet50'
        )
    return read_checkpoint(checkpoint)


def _read_timm(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Downloads the weights of a timm model, without building the model."""
    try:
        from timm.models import get_pretrained_cfg, load_state_dict_from_hf
    except ImportError:
        raise InputError(f'{name} needs timm: pip install timm huggingface_hub, or use a file') from None
    try:
        source = get_pretrained_cfg(name.removeprefix(TIMM))
    except RuntimeError as error:  # the model is known, but not the tag of its weights
        raise InputError(f'timm has no weights named {name.removeprefix(TIMM)}: {single_line(error)}') from None
    if source is None or not (source.hf_hub_id or source.url):
        raise InputError(
            f'timm has no weights named {name.removeprefix(TIMM)}: write for example {TIMM}resnet50.a1_in1k'
        )
    if not source.hf_hub_id:
        return read_checkpoint(source.url)
    try:
        return load_state_dict_from_hf(source.hf_hub_id, weights_only=True), {}
    except Exception as error:  # a download may raise anything
        raise InputError(
            f'{name} cannot be downloaded ({type(error).__name__}: {single_line(error)}): download it manually and use '
            'the local file'
        ) from error


def _find_encoder(
    state: Mapping[str, Tensor], meta: dict[str, Any], backbone: nn.Module, prefix: str | None
) -> EncoderCheckpoint:
    """Selects the tensors of a backbone, and of the neck beside it, from a state dict."""
    foreign = detect_foreign_format(state) if prefix is None else None
    if foreign in _RENAMED:
        chosen = FOREIGN_FORMATS[foreign]
        inside = {key: tensor for key, tensor in state.items() if key.startswith(chosen.prefix)}
        left_out = _first_components(key for key in state if key not in inside)
        return EncoderCheckpoint(convert_foreign(inside, foreign), foreign, chosen.title, meta, left_out)
    names = frozenset(backbone.state_dict())
    neck_prefix = None
    if prefix is None:
        prefix = '' if _is_original(state, backbone) else find_prefix(state, names, type(backbone).__name__)
        root = prefix.removesuffix(PARTS[0])
        neck_prefix = f'{root}{PARTS[1]}' if root != prefix else None
    inside = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    if not inside:
        parts = format_truncated(_first_components(state))
        raise InputError(f'no key starts with the prefix {prefix!r}; the keys start with {parts}')
    neck = {key: tensor for key, tensor in state.items() if neck_prefix and key.startswith(neck_prefix)}
    outside = [key for key in state if not key.startswith(prefix) and key not in neck]
    if _is_original(inside, backbone):
        original = _first_components(inside)
        inside = _convert_original(inside, backbone)
        outside += [part for part in original if part in ('head', 'norm', 'cls_token')]
    foreign_names = [name for name in inside if not _is_of_backbone(name, names, prefix)]
    tensors = {f'{PARTS[0]}{name}': tensor for name, tensor in inside.items() if name not in foreign_names}
    tensors.update({f'{PARTS[1]}{key.removeprefix(neck_prefix or "")}': tensor for key, tensor in neck.items()})
    tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith(_COMPUTED_TABLES)}
    left_out = _first_components([*outside, *foreign_names])
    return EncoderCheckpoint(add_batch_counters(tensors), 'mmdet', 'mmdet', meta, left_out)


def find_prefix(keys: Iterable[str], names: Collection[str], title: str) -> str:
    """Finds the prefix with which most names of a backbone's tensors occur in a file.

    The prefixes of known models take precedence, because key encoders and teachers have the same names.

    Args:
        keys (Iterable[str]): Keys of the file.
        names (Collection[str]): Names of the tensors of the backbone.
        title (str): Name of the backbone in messages.

    Raises:
        InputError: No name occurs, or several prefixes are equally frequent.
    """
    keys = list(keys)
    counts: Counter[str] = Counter()
    for key in keys:
        starts = [0, *(match.end() for match in re.finditer(r'\.', key))]
        counts.update(key[:start] for start in starts if key[start:] in names)
    if not counts:
        raise InputError(
            f'no key belongs to the backbone {title}, whose first key is {min(names)}; the file contains '
            f'{format_truncated(keys, 2)}: use weights of the same backbone'
        )
    highest = max(counts.values())
    for preferred in _PREFERRED_PREFIXES:
        if counts[preferred] >= highest / 2:
            return preferred
    if highest < len(names) / 2:  # only some common names, such as conv1.weight
        return PARTS[0] if any(key.startswith(PARTS[0]) for key in keys) else ''
    prefixes = [prefix for prefix, count in counts.items() if count == highest]
    if len(prefixes) > 1:
        choices = ' or '.join(f'prefix={prefix!r}' for prefix in prefixes)
        raise InputError(f'the file contains the backbone {len(prefixes)} times: set {choices}')
    return prefixes[0]


def _is_of_backbone(name: str, names: Collection[str], prefix: str) -> bool:
    """Returns whether a tensor under the prefix of the backbone belongs to it, even if the backbone lacks it.

    A classifier without the prefix ``backbone.`` has its head beside the backbone, under a component of its own. Norm
    layers of maps that the backbone does not return are no part of it.
    """
    if name in names:
        return True
    if re.fullmatch(r'norm\d*\.\w+', name):
        return False
    first = name.partition('.')[0]
    return prefix.endswith(PARTS[0]) or any(own.partition('.')[0] == first for own in names)


def _is_original(state: Collection[str], backbone: nn.Module) -> bool:
    """Returns whether keys are those of the files that Swin's and PVT's authors published."""
    if isinstance(backbone, SwinTransformer):
        return 'patch_embed.proj.weight' in state
    return isinstance(backbone, PyramidVisionTransformer) and 'patch_embed1.proj.weight' in state


def _convert_original(state: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Converts a file of Swin's or PVT's authors as mmdet does with ``convert_weights=True``."""
    try:
        if isinstance(backbone, PyramidVisionTransformer):
            return dict(pvt_convert(state))
        return {key.removeprefix(PARTS[0]): tensor for key, tensor in swin_converter(state).items()}
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(
            f'the keys are those of the authors of {type(backbone).__name__}, but the file is incomplete '
            f'({type(error).__name__}: {single_line(error)})'
        ) from error


def _first_components(keys: Iterable[str]) -> tuple[str, ...]:
    """Returns the first components of keys, without normalization constants and with one entry for all averages."""
    names = (re.sub(r'^ema_.*', 'ema_*', key.partition('.')[0]) for key in keys)
    return tuple(dict.fromkeys(name for name in names if name != 'data_preprocessor'))
