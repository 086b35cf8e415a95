"""Backbone and neck of a checkpoint of CCOP, or of a format that its converters read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ccop_mm.utils.errors import InputError
from ccop_mm.weights.checkpoint_file import read_checkpoint
from ccop_mm.weights.formats import FOREIGN_FORMATS, convert_foreign, detect_foreign_format
from ccop_mm.weights.key_mapping import PARTS, select_encoder, strip_wrappers
from ccop_mm.weights.model_fit import check_finite


@dataclass(frozen=True)
class EncoderCheckpoint:
    """Backbone, and neck if present, of a checkpoint.

    Attributes:
        tensors (dict[str, Tensor]): Tensors under ``backbone.*`` and ``neck.*``, with mmdet's keys.
        source_format (str): ``'ccop'``, ``'mmdet'`` (any model with the backbone's own keys), or a key of
            :data:`ccop_mm.weights.formats.FOREIGN_FORMATS`.
        title (str): Name of the format in messages.
        meta (dict): Metadata of the file.
        left_out (tuple[str, ...]): First components of the keys that belong to neither, such as ``rpn_head``.
        key_encoder (frozenset[str]): Keys of the copies of backbone and neck in CCOP's key encoder, without its prefix.
    """

    tensors: dict[str, Tensor]
    source_format: str
    title: str
    meta: dict[str, Any]
    left_out: tuple[str, ...] = ()
    key_encoder: frozenset[str] = frozenset()


def read_encoder(checkpoint: str | Path) -> EncoderCheckpoint:
    """Reads backbone, and neck if present, of a CCOP checkpoint or one in :data:`FOREIGN_FORMATS`.

    Args:
        checkpoint (str | Path): File, ``https://`` URL or ``torchvision://`` name.

    Raises:
        InputError: The file cannot be read, its keys belong to no supported format, or a tensor of the encoder has a
            NaN or infinite value.
    """
    state, meta = read_checkpoint(checkpoint)
    try:
        state = strip_wrappers(state)
        foreign = detect_foreign_format(state)
        if foreign is None:
            tensors = select_encoder(state)
            key_encoder = (key.removeprefix('encoder_k.') for key in state if key.startswith('encoder_k.'))
            copies = frozenset(key for key in key_encoder if key.startswith(PARTS))
            encoder = EncoderCheckpoint(tensors, 'ccop', 'CCOP', meta, key_encoder=copies)
        else:
            encoder = EncoderCheckpoint(convert_foreign(state, foreign), foreign, FOREIGN_FORMATS[foreign].title, meta)
        check_finite(encoder.tensors)
    except InputError as error:
        raise InputError(f'{checkpoint}: {error}') from None
    return encoder
