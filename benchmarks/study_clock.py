"""Steps of two pre-trainings, timed in turn: what "the same wall-clock" is on a machine whose speed changes.

    python benchmarks/study_clock.py CONFIG OTHER --json FILE

A step is that of tools/train.py, from the loader to the new weights, halfway through the curriculum, without hooks
(logging, checkpoints, the watch for losses that are not finite). Where workers load ahead, what they do hides behind
the steps of both, as if they always kept up. Both trainings begin with random weights. The result is the median of the
ratios of neighbours, CONFIG's over OTHER's.
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
from ccop_mm.errors import exit_on_input_error
from ccop_mm.fileio import atomic_write


class Training:
    """A pre-training, step by step.

    Args:
        config (str): Its config file.
        name (str): Unlike those of other trainings of this process.
        work_dir (str): For its log.
    """

    def __init__(self, config: str, name: str, work_dir: str) -> None:
        options = dict(work_dir=work_dir, cfg_options={}, launcher='none', local_rank=0)
        cfg = launch.load_config(argparse.Namespace(config=config, **options))
        cfg.experiment_name, cfg.log_level = name, 'WARNING'
        fit_queues(cfg)
        runner = launch.build_runner(cfg)
        self._model = runner.model.train()
        if hasattr(self._model, 'box_jitter'):
            self._model.box_jitter.progress = 0.5  # there is no hook to move it
        self._optim_wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
        self._batches = itertools.chain.from_iterable(itertools.repeat(runner.build_dataloader(cfg.train_dataloader)))

    def step(self) -> float:
        """Seconds of one."""
        begun = time.perf_counter()
        self._model.train_step(next(self._batches), optim_wrapper=self._optim_wrapper)
        if get_device() != 'cpu':
            torch.cuda.synchronize()
        return time.perf_counter() - begun


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of a pre-training')
    parser.add_argument('other', help='of the one that it is compared with')
    parser.add_argument('--rounds', type=int, default=16, help='steps of each (default: %(default)s)')
    parser.add_argument('--json', required=True, help='file for the result')
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv=None):
    args = parse_args(argv)
    if get_device() == 'cpu':
        keep_freed_memory()  # as tools/train.py does
    seconds = [], []
    with tempfile.TemporaryDirectory() as work_dir:
        trainings = [Training(config, f'{number}', work_dir) for number, config in enumerate((args.config, args.other))]
        for number in range(args.rounds + 2):
            for training, found in zip(trainings, seconds, strict=True):
                took = training.step()
                if number >= 2:  # the first ones take memory and choose kernels
                    found.append(took)
    ratio = statistics.median(mine / other for mine, other in zip(*seconds, strict=True))
    result = dict(ratio=ratio, seconds=seconds[0], other_seconds=seconds[1])
    with atomic_write(args.json, 'w') as file:
        json.dump(result, file)
    medians = [statistics.median(found) for found in seconds]
    print(f'{medians[0]:.3f} and {medians[1]:.3f} s a step; ratio {ratio:.2f} (median of {args.rounds} pairs)')


if __name__ == '__main__':
    main()
