"""A training run of two parameters that takes less than a second and writes a complete mmengine checkpoint."""

from pathlib import Path

import numpy as np
import torch
from mmcv.cnn import build_norm_layer
from mmengine import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn


@MODELS.register_module(force=True)
class ToyModel(BaseModel):
    """The smallest model that a Runner can train: the loss is linear in ``weight``, with a norm layer in the graph."""

    def __init__(self, norm_cfg):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.norm = build_norm_layer(norm_cfg, 2)[1]

    def forward(self, inputs, mode):
        if mode == 'predict':
            return list(inputs)
        return {'loss': (self.weight * inputs.flatten(1)).sum() + 0 * self.norm(inputs).sum()}


@DATASETS.register_module(force=True)
class ToyDataset(torch.utils.data.Dataset):
    """Four samples; sample i is a (2, 1, 1) image of value i."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {'inputs': torch.full((2, 1, 1), float(index))}


@METRICS.register_module(force=True)
class ToyMetric(BaseMetric):
    """Counts the samples that all processes have evaluated together."""

    def process(self, data_batch, data_samples):
        self.results += [1] * len(data_samples)

    def compute_metrics(self, results):
        return {'count': np.float64(len(results))}


def toy_config(work_dir: str | Path, **changes) -> Config:
    """Returns the config of two epochs with everything that a checkpoint contains: history, schedules, validation.

    Args:
        work_dir (str | Path): Work directory.
        **changes: Entries of the config to replace or add.
    """
    loader = {
        'dataset': {'type': 'ToyDataset'},
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'collate_fn': {'type': 'default_collate'},
        'batch_size': 2,
    }
    cfg = {
        'work_dir': str(work_dir),
        'model': {'type': 'ToyModel', 'norm_cfg': {'type': 'SyncBN'}},
        'train_dataloader': loader,
        'train_cfg': {'by_epoch': True, 'max_epochs': 2},
        'val_dataloader': loader,
        'val_cfg': {},
        'val_evaluator': {'type': 'ToyMetric', 'prefix': 'toy'},
        'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.1, 'momentum': 0.0}},
        'param_scheduler': [
            {'type': 'LinearLR', 'start_factor': 1},
            {'type': 'MultiStepLR', 'milestones': [9]},
        ],
        'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'interval': 1}},
        'env_cfg': {'dist_cfg': {'backend': 'nccl'}},
        **changes,
    }
    return Config(cfg)
