"""Times the training steps of two pre-training configs alternately and reports the ratio.

    python studies/study_clock.py CONFIG OTHER --json FILE

The ratio converts epochs of one method into epochs of the other that take the same time, on a machine whose speed may
change. A step is that of tools/train.py, from the data loader to the updated weights, halfway through the curriculum
and without hooks. Loader workers that prefetch run during the steps of both configs, so data loading counts as if the
workers always kept up. Both models have random weights. The result is the median of the ratios (CONFIG / OTHER) of
consecutive steps.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time

import torch
from mmengine.device import get_device

from ccop_mm.engine import launch
from ccop_mm.engine.malloc import keep_freed_memory
from ccop_mm.engine.queue_lengths import fit_queues
from ccop_mm.utils.errors import exit_on_input_error
from ccop_mm.utils.file_io import atomic_write

#: Steps that are not counted: they allocate memory and select kernels.
WARMUP_STEPS = 2


class Training:
    """A pre-training run that is advanced step by step.

    Args:
        config (str): Config file.
        name (str): Experiment name, unique in this process.
        work_dir (str): Work directory.
    """

    def __init__(self, config: str, name: str, work_dir: str) -> None:
        cfg = launch.load_config(config, work_dir)
        cfg.experiment_name, cfg.log_level = name, 'WARNING'
        fit_queues(cfg)
        runner = launch.build_runner(cfg)
        self._model = runner.model.train()
        if hasattr(self._model, 'box_jitter'):
            self._model.box_jitter.progress = 0.5  # the curriculum hook is not called
        self._optim_wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
        self._batches = itertools.chain.from_iterable(itertools.repeat(runner.build_dataloader(cfg.train_dataloader)))

    def step(self) -> float:
        """Runs one training step; returns its duration in seconds."""
        start = time.perf_counter()
        self._model.train_step(next(self._batches), optim_wrapper=self._optim_wrapper)
        if get_device() != 'cpu':
            torch.cuda.synchronize()
        return time.perf_counter() - start


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='pre-training config')
    parser.add_argument('other', help='pre-training config to compare with')
    parser.add_argument('--rounds', type=int, default=16, help='measured steps of each config (default: %(default)s)')
    parser.add_argument('--json', required=True, help='output file')
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if get_device() == 'cpu':
        keep_freed_memory()  # as tools/train.py does
    times: tuple[list[float], list[float]] = [], []
    with tempfile.TemporaryDirectory() as work_dir:
        trainings = [Training(config, f'{number}', work_dir) for number, config in enumerate((args.config, args.other))]
        for number in range(args.rounds + WARMUP_STEPS):
            for training, step_times in zip(trainings, times, strict=True):
                duration = training.step()
                if number >= WARMUP_STEPS:
                    step_times.append(duration)
    ratio = statistics.median(first / second for first, second in zip(*times, strict=True))
    with atomic_write(args.json, 'w') as file:
        json.dump(dict(ratio=ratio, seconds=times[0], other_seconds=times[1]), file)
    medians = [statistics.median(step_times) for step_times in times]
    print(f'{medians[0]:.3f} and {medians[1]:.3f} s per step; ratio {ratio:.2f} (median of {args.rounds} pairs)')


if __name__ == '__main__':
    main()
