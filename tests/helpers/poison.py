"""Registered classes for runs with a non-finite loss; imported through ``custom_imports``, also by subprocesses."""

import contextlib

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.optim import OptimWrapper
from mmselfsup.registry import OPTIM_WRAPPERS, TRANSFORMS


@TRANSFORMS.register_module()
class PoisonImage(BaseTransform):
    """Writes one NaN into the query view of the image with the given name; converts all images to float32."""

    def __init__(self, name):
        self.name = name

    def transform(self, results):
        results['img'] = [np.array(view, dtype=np.float32) for view in results['img']]
        if results['img_path'].endswith(self.name):
            results['img'][0][5, 7, 1] = np.nan
        return results


@OPTIM_WRAPPERS.register_module()
class Bfloat16Wrapper(OptimWrapper):
    """Runs under bfloat16 autocast on the CPU; mmengine's AmpOptimWrapper requires a GPU."""

    @contextlib.contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield
