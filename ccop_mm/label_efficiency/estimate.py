"""Measures a training step and a test step of a detector, to estimate how long a study takes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from ccop_mm import compat
from ccop_mm.evaluation import load_model
from ccop_mm.pretrain.estimate import StepTime
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import single_line

#: Steps that are timed; one more precedes them.
NUM_STEPS = 2
#: Seconds to start a process, to build datasets and detector, to save and load the checkpoint, and to evaluate: 9 CPU
#: seconds with a ResNet-18.
START_SECONDS = 10.0


@dataclass(frozen=True)
class RunTime:
    """What the duration of a run depends on.

    Args:
        step (StepTime): Time of a training step.
        test (float): Seconds to load and test an image.
        num_workers (int): Processes of the data loader.
    """

    step: StepTime
    test: float
    num_workers: int

    def estimate(self, iterations: int, num_tested: int) -> float:
        """Estimates the seconds of a run.

        Args:
            iterations (int): Training steps.
            num_tested (int): Images to test.
        """
        return START_SECONDS + self.step.estimate(iterations, self.num_workers) + num_tested * self.test


def time_run(settings: Mapping[str, Any]) -> RunTime:
    """Measures the training step and the test step of a run on its first images.

    Args:
        settings (Mapping): Config of a run, from :func:`ccop_mm.label_efficiency.runs.run_settings`.

    Raises:
        InputError: A step fails.
    """
    cfg, device = compat.prepare_config(Config(dict(settings))), get_device()
    try:
        return _time_run(cfg, device)
    except Exception as error:  # transforms and layers raise anything
        raise InputError(
            f'a training step of the detector fails with {type(error).__name__}: {single_line(error)}; correct its '
            'config, or pass --debug for the traceback'
        ) from error


def _time_run(cfg: Config, device: str) -> RunTime:
    train, test = cfg.train_dataloader, cfg.test_dataloader
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        batch, loading = _load(train.dataset, train.get('batch_size', 1))
        tested, test_loading = _load(test.dataset, test.get('batch_size', 1))
        model: Any = load_model(cfg).to(device)
        optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        step = _time(lambda: model.train_step(batch, optim_wrapper), device)
        model.eval()
        with torch.no_grad():
            test_step = _time(lambda: model.test_step(tested), device)
    seconds = (test_step + test_loading) / len(tested['inputs'])
    return RunTime(StepTime(step, loading), seconds, train.get('num_workers', 0))


def _load(config: Any, batch_size: int) -> tuple[Any, float]:
    """Returns a batch of the first images of a dataset, which are repeated to fill it, and the seconds to load it."""
    dataset = DATASETS.build(config)
    started = time.perf_counter()
    batch = pseudo_collate([dataset[index % len(dataset)] for index in range(batch_size)])
    return batch, time.perf_counter() - started


def _time(step: Any, device: str) -> float:
    times = []
    for _ in range(NUM_STEPS + 1):
        started = time.perf_counter()
        step()
        if device == 'cuda':
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])
