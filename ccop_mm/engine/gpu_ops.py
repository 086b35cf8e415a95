"""Check of mmcv's compiled ops before a model runs on a GPU."""

import torch
from mmcv.ops import get_compiling_cuda_version
from torch import nn

from ccop_mm.utils.errors import InputError


def check_gpu_ops(model: nn.Module) -> None:
    """Checks whether the ops of mmcv that a model uses are compiled for GPUs, if there is a GPU.

    Ops that were compiled where no GPU was visible can be imported, and fail when they are called with a CUDA tensor.

    Args:
        model (nn.Module): Model of a runner, which moves it to the GPU.

    Raises:
        InputError: The model uses ops, torch sees a GPU, and the ops are compiled for the CPU only.
    """
    if not torch.cuda.is_available() or get_compiling_cuda_version() != 'not available':
        return
    ops = list_ops(model)
    if ops:
        raise InputError(
            f"mmcv's ops are compiled for the CPU only, so {', '.join(ops)} cannot run on the GPU; compile mmcv again "
            'by the command that `python -m ccop_mm.doctor` prints, or set CUDA_VISIBLE_DEVICES= to use the CPU'
        )


def list_ops(model: nn.Module) -> list[str]:
    """Lists the ops of mmcv that a model uses: layers by their class, and NMS if it is configured, in sorted order."""
    layers = {type(module).__name__ for module in model.modules() if type(module).__module__.startswith('mmcv.ops.')}
    configs = [getattr(module, 'test_cfg', None) for module in model.modules()]
    nms = {'NMS'} if any(isinstance(config, dict) and config.get('nms') for config in configs) else set()
    return sorted(layers | nms)
