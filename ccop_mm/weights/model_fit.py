"""Comparison of a state dict with a model: what mmengine's Runner would load, and what it would silently leave out."""

import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ccop_mm.utils.errors import InputError

# How torch reports a shape mismatch.
_RESHAPED = re.compile(r'size mismatch for (\S+): copying a param with shape \D*\[(.*?)\]\D* model is \D*\[(.*?)\]')

# Running statistics are learned. Other buffers, such as index tables, are computed by the constructor.
_STATISTICS = ('running_mean', 'running_var')


@dataclass(frozen=True)
class ModelFit:
    """Differences between a state dict and a model.

    Args:
        missing (tuple[str, ...]): Keys of the model that the state dict does not contain. Only parameters and running
            statistics are listed; the constructor computes all other buffers.
        unexpected (tuple[str, ...]): Keys of the state dict that the model does not have.
        reshaped (dict[str, tuple[str, str]]): Key -> shape in the state dict and shape in the model.
        other (tuple[str, ...]): Messages of torch about tensors that cannot be copied for another reason.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: dict[str, tuple[str, str]]
    other: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Returns whether every learned tensor of the model is loaded, and every tensor of the state dict is used."""
        return not (self.missing or self.unexpected or self.reshaped or self.other)


def strip_module_prefix(state: Mapping[str, Any]) -> 'OrderedDict[str, Any]':
    """Removes ``module.`` at the start of each key and keeps the versions of the modules, like mmengine's Runner."""
    stripped = OrderedDict((key.removeprefix('module.'), value) for key, value in state.items())
    stripped._metadata = getattr(state, '_metadata', OrderedDict())  # type: ignore[attr-defined]
    return stripped


def compare_with_model(model: nn.Module, state: Mapping[str, Any]) -> ModelFit:
    """Loads a state dict into a model like mmengine's Runner, but reports all differences.

    The modules themselves load their tensors, so that conversions of old keys and the resizing of CCOP's queues are
    taken into account. A model on the meta device is compared without copying any tensor.

    Args:
        model (nn.Module): Model, preferably on the meta device, because matching tensors are overwritten.
        state (Mapping[str, Any]): State dict with the keys that the Runner would pass to the model, see
            :func:`strip_module_prefix`.

    Returns:
        ModelFit: Differences.
    """
    metadata = getattr(state, '_metadata', None) or {}
    missing: list[str] = []
    unexpected: list[str] = []
    errors: list[str] = []

    def load(module: nn.Module, local: dict[str, Any], prefix: str) -> None:
        versions = metadata.get(prefix[:-1], {})
        module._load_from_state_dict(local, prefix, versions, True, missing, unexpected, errors)
        for name, child in module._modules.items():
            if child is not None:
                below = f'{prefix}{name}.'
                load(child, {key: value for key, value in local.items() if key.startswith(below)}, below)

    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*which is a no-op')  # copying to the meta device
        load(model, dict(state), '')
    computed = {name for name, _ in model.named_buffers() if not name.endswith(_STATISTICS)}
    matches = [(_RESHAPED.match(error), error) for error in errors]
    return ModelFit(
        missing=tuple(key for key in missing if key not in computed),
        # Normalization constants, which come from the config, and averages that mmdet 2 stored beside the weights.
        unexpected=tuple(
            key for key in dict.fromkeys(unexpected) if not key.startswith(('data_preprocessor.', 'ema_'))
        ),
        reshaped={match[1]: (f'({match[2]})', f'({match[3]})') for match, _ in matches if match},
        other=tuple(error for match, error in matches if not match),
    )


def non_finite_keys(state: Mapping[str, Any]) -> list[str]:
    """Returns the keys of all tensors with a NaN or infinite value.

    Args:
        state (Mapping[str, Any]): Tensors by name; integers and values of other types are skipped.
    """
    return [key for key, value in state.items() if isinstance(value, Tensor) and not _is_finite(value)]


def _is_finite(tensor: Tensor) -> bool:
    if tensor.numel() == 0 or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    if real.itemsize == 1:  # few operations support 8-bit floats
        real = real.float()
    # The extremes are NaN if any value is. Unlike isfinite, this allocates no memory and uses vector instructions.
    return all(bool(extreme.isfinite()) for extreme in real.aminmax())


def describe_non_finite(state: Mapping[str, Any]) -> str | None:
    """Describes the tensors with a NaN or infinite value, by number and first key; None if there are none."""
    keys = non_finite_keys(state)
    return f'{len(keys)} of {len(state)} tensors contain NaN or infinite values (first: {keys[0]})' if keys else None


def check_finite(state: Mapping[str, Any]) -> None:
    """Checks that no tensor has a NaN or infinite value.

    Raises:
        InputError: Some do; the message states their number and the first key.
    """
    problem = describe_non_finite(state)
    if problem:
        raise InputError(f'{problem}: the run that saved the checkpoint diverged, use an earlier one')
