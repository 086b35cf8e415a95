"""Helpers for models: wrappers, devices, evaluation mode."""

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
from mmengine.device import get_device
from mmengine.model import is_model_wrapper
from torch import nn

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import single_line


def unwrap_model(model: nn.Module) -> nn.Module:
    """Returns the model inside ``DistributedDataParallel`` and other mmengine wrappers, including nested ones."""
    while is_model_wrapper(model):
        model = cast(nn.Module, model.module)
    return model


def to_device(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Moves a model to a device in place and returns it.

    Args:
        model (nn.Module): Model.
        device (torch.device | str): Device; ``'auto'`` is the GPU if there is one, and the CPU otherwise.

    Raises:
        InputError: The device is not available.
    """
    try:
        return model.to(get_device() if device == 'auto' else device)
    except (AssertionError, RuntimeError) as error:  # a build of torch without CUDA raises AssertionError
        raise InputError(f'device {device} cannot be used: {single_line(error)}') from None


@contextlib.contextmanager
def inference_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model into eval mode and disables gradients; restores the training flag of every submodule on exit.

    Compiled submodules run uncompiled. Probes pass images of many shapes, and torch keeps a limited number of compiled
    versions of a function: after them, training would run uncompiled.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance('force_eager'):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
