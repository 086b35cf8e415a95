"""Measures what the hooks that every training run has add to a training iteration.

python benchmarks/hooks.py [--kinds pretraining detector] [--rounds 40] [--threads 2] [--json FILE]

Two small trainings on random images: CCOP (R18, 112 px, batch 16) and Mask R-CNN (R18-FPN, 256 px, batch 2, 32 RoIs per
image). Iterations with and without the hooks alternate in the same run, on batches that were loaded before; a ratio is
the median of the ratios of consecutive iterations. Also measures the calls of the hooks alone, and the seeding of a
detector's samples.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop

from ccop_mm.datasets.sampler import SeededBatch
from ccop_mm.engine import launch
from ccop_mm.engine.resume import ResumedRunHook
from ccop_mm.proposals.store import ProposalStore
from ccop_mm.utils.file_io import atomic_write

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
#: Hooks whose cost is measured. Those that a recipe lists itself, such as FiniteLossHook of CCOP, are kept on.
ADDED = ('StopHook', 'FirstIterationHook', 'GradientAccumulationHook', 'ResumedRunHook', 'UnreadableImageHook')
ADDED_TO_DETECTORS = (*ADDED, 'FiniteLossHook', 'IterationSeedHook')
#: Iterations before the first measured one.
WARM_UP = 4


@LOOPS.register_module()
class AlternatingLoop(EpochBasedTrainLoop):
    """Runs iterations with and without some hooks in turn.

    Args:
        rounds (int): Number of measured pairs of iterations.
        hooks (tuple[str, ...]): Class names of these hooks.
        **kwargs: Arguments of ``EpochBasedTrainLoop``.
    """

    def __init__(self, *args: Any, rounds: int, hooks: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rounds, self.names = rounds, hooks
        self.wall: dict[bool, list[float]] = {True: [], False: []}
        self.cpu: dict[bool, list[float]] = {True: [], False: []}
        self.in_hooks: list[float] = []

    def run(self) -> torch.nn.Module:
        """Measures; returns the model."""
        runner = self.runner
        runner.call_hook('before_train')
        runner.call_hook('before_train_epoch')
        runner.model.train()
        batches = list(self.dataloader)
        every = list(runner.hooks)
        measured = [hook for hook in every if type(hook).__name__ in self.names]
        rest = [hook for hook in every if hook not in measured]
        for number in range(-WARM_UP, self.rounds):
            batch = batches[number % len(batches)]
            for enabled in (True, False) if number % 2 else (False, True):
                runner._hooks = every if enabled else rest
                wall, cpu = time.perf_counter(), time.process_time()
                self.run_iter(number % len(batches), batch)
                if number >= 0:
                    self.wall[enabled].append(time.perf_counter() - wall)
                    self.cpu[enabled].append(time.process_time() - cpu)
            if number >= 0:
                self.in_hooks.append(self._call(measured, number % len(batches), batch))
        runner._hooks = every
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        return runner.model

    def _call(self, hooks: list[Hook], index: int, batch: Any) -> float:
        """Calls the hooks as in an iteration; returns the seconds."""
        outputs = dict(loss=torch.zeros(()))
        start = time.perf_counter()
        for hook in hooks:
            hook.before_train_iter(self.runner, index, batch)
        for hook in hooks:
            hook.after_train_iter(self.runner, index, batch, outputs)
        return time.perf_counter() - start


def write_images(folder: Path, count: int, size: int) -> None:
    """Writes random images, a COCO json with boxes and masks, and a proposals file."""
    rng = np.random.default_rng(0)
    images, annotations, entries = [], [], []
    for number in range(count):
        name = f'{number}.png'
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
        images.append(dict(id=number + 1, file_name=name, width=size, height=size))
        corners = rng.integers(0, size // 2, (12, 2))
        boxes = np.concatenate([corners, corners + rng.integers(size // 8, size // 2, (12, 2))], axis=1).tolist()
        entries.append((number + 1, name, (size, size), boxes))
        for x1, y1, x2, y2 in boxes[:6]:
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=number + 1,
                    category_id=1,
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    area=(x2 - x1) * (y2 - y1),
                    iscrowd=0,
                    segmentation=[[x1, y1, x2, y1, x2, y2, x1, y2]],
                )
            )
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name='object')])
    (folder / 'images.json').write_text(json.dumps(content))
    ProposalStore(entries).save(folder / 'proposals.npz')


def pretraining_config(folder: Path) -> Config:
    """Returns the config of CCOP's demo with the images of a folder."""
    write_images(folder, count=64, size=200)
    dataset = dict(data_root=str(folder), ann_file='images.json', proposal_file='proposals.npz')
    options = {f'train_dataloader.dataset.{key}': value for key, value in dataset.items()}
    return launch.load_config(
        CONFIGS / 'ccop/ccop_r18_fpn_demo.py',
        options={**options, 'train_dataloader.dataset.data_prefix.img_path': ''},
    )


def detector_config(folder: Path) -> Config:
    """Returns the config of a Mask R-CNN with the images of a folder."""
    write_images(folder, count=8, size=256)
    options = {
        'model.roi_head.bbox_head.num_classes': 1,
        'model.roi_head.mask_head.num_classes': 1,
        'model.train_cfg.rcnn.sampler.num': 32,
        'train_dataloader.batch_size': 2,
        'train_dataloader.dataset.data_root': '',
        'train_dataloader.dataset.ann_file': str(folder / 'images.json'),
        'train_dataloader.dataset.data_prefix.img': str(folder),
        'train_dataloader.dataset.metainfo.classes': ['object'],
        'train_dataloader.dataset.pipeline.2.scales': [(256, 256)],
    }
    cfg = launch.load_config(CONFIGS / 'transfer/mask_rcnn/mask-rcnn_r18-fpn_random_1x_coco.py', options=options)
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    return cfg


#: Config and measured hooks by kind of training.
KINDS: dict[str, tuple[Callable[[Path], Config], tuple[str, ...]]] = {
    'pretraining': (pretraining_config, ADDED),
    'detector': (detector_config, ADDED_TO_DETECTORS),
}


def measure(kind: str, rounds: int) -> dict[str, float]:
    """Trains and measures; returns name -> result."""
    make_config, hooks = KINDS[kind]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cfg = make_config(folder)
        cfg.work_dir = str(folder / 'work')
        cfg.log_level, cfg.experiment_name = 'ERROR', kind
        loader = cfg.train_dataloader
        loader.num_workers, loader.persistent_workers = 0, False
        cfg.train_cfg = dict(type='AlternatingLoop', rounds=rounds, hooks=hooks, max_epochs=rounds)
        cfg.param_scheduler = []
        cfg.default_hooks.checkpoint = None
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        launch.check(cfg).raise_errors()
        runner = launch.build_runner(cfg)
        runner.register_hook(ResumedRunHook())
        runner.train()
        loop = runner.train_loop
        present = {type(hook).__name__ for hook in runner.hooks} & set(hooks)
    ratios = {
        name: statistics.median(a / b for a, b in zip(times[True], times[False], strict=True))
        for name, times in (('time', loop.wall), ('cpu_time', loop.cpu))
    }
    return dict(
        hooks=len(present),
        seconds=statistics.median(loop.wall[False]),
        **ratios,
        microseconds_in_hooks=1e6 * statistics.median(loop.in_hooks),
    )


def seeding_microseconds(count: int = 10_000) -> float:
    """Returns the microseconds that seeding a sample of a detector takes, median of five runs."""
    times = []
    for _ in range(5):
        start = time.process_time()
        for _ in SeededBatch(range(count), (0, 0, 0)):
            pass
        times.append(time.process_time() - start)
    return 1e6 * statistics.median(times) / count


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=list(KINDS), help='trainings (default: both)')
    parser.add_argument('--rounds', type=int, default=40, help='pairs of iterations (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=2, help='number of CPU threads (default: %(default)s)')
    parser.add_argument('--json', help='also write the results to this file')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {kind: measure(kind, args.rounds) for kind in args.kinds}
    print('              hooks   s per iteration   with / without   CPU time   us in the hooks')
    for kind, row in results.items():
        print(
            f'{kind:12} {row["hooks"]:6} {row["seconds"]:17.3f} {row["time"]:16.4f} {row["cpu_time"]:10.4f} '
            f'{row["microseconds_in_hooks"]:17.0f}'
        )
    results['seeding_microseconds'] = seeding_microseconds()
    print(f'seeding of a sample: {results["seeding_microseconds"]:.1f} us')
    if args.json:
        with atomic_write(args.json, 'w') as file:
            json.dump(results, file, indent=2)


if __name__ == '__main__':
    main()
