"""Does CCOP learn, and more than MoCo v2? Methods x seeds on annotated photos, from pre-training to box AP.

    python benchmarks/transfer_study.py DATA --out work_dirs/study --jobs 2   # small: docs/results.md has the times
    python benchmarks/transfer_study.py DATA --out work_dirs/study --labels 10       # and box AP on 10 % of the labels
    python benchmarks/transfer_study.py DATA --out work_dirs/tuned --moco benchmarks/study/mocov2-tuned_small.py
    python benchmarks/transfer_study.py DATA --out work_dirs/full --setting full --seeds 0 1 2 --labels 10 100 # a GPU

DATA holds annotations/train.json and annotations/val.json (COCO format) and the photos in train/ and val/. Pre-training
sees the photos of train/ without labels, but for ``--methods true-boxes``; everything is measured on val/. A study that
was killed goes on where it was when the same command is repeated. OUT/commands.txt has every command that was run,
OUT/results.md and results.png what came of it.
"""

import argparse
import fcntl
import hashlib
import json
import math
import os
import random
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from study_report import Outcome, write_report

from ccop_mm import demo
from ccop_mm.config_file import read_config
from ccop_mm.engine.checkpoint_hook import find_newest
from ccop_mm.errors import InputError, exit_on_input_error
from ccop_mm.fileio import atomic_write

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = Path(__file__).resolve().parent / 'study'
#: CCOP without one of its parts, as changes of its model: ``no-noise`` has each key box itself as its positive,
#: ``no-curriculum`` the paper's last noise from the first step on, ``no-intra`` a margin that no similarity is above.
ABLATIONS = {
    'no-noise': dict(box_jitter=dict(num_jitter=1, noise=(0.0, 0.0))),
    'no-curriculum': dict(box_jitter=dict(noise=(1.0, 1.0), min_iou=(0.3, 0.3))),
    'no-intra': dict(intra_loss=dict(alpha=1.0)),
}
#: CCOP on other boxes than selective search's: ``--method`` of tools/propose.py.
BOXES = {'random-boxes': 'random', 'true-boxes': 'ground-truth'}
#: What is compared, in the order of the table. ``random-bn`` has random weights and the batch statistics of an epoch:
#: what a network knows from having seen the photos without learning. ``image`` is CCOP without proposals: its image
#: loss alone, MoCo v2 with its batch statistics split (mmselfsup's MoCo does not split them in one process).
#: ``mocov2-time`` is MoCo v2 for as long as CCOP took, ``mocov2`` for as many photos as CCOP saw.
METHODS = ('random', 'random-bn', 'mocov2', 'mocov2-time', 'image', *ABLATIONS, *BOXES, 'ccop')
DEFAULT_METHODS = ('random', 'mocov2', 'mocov2-time', 'ccop')


@dataclass(frozen=True)
class Setting:
    """The size of a study.

    Attributes:
        epochs (int): Of CCOP's pre-training.
        view (int): Side of a view in pixels, in pre-training and in the pointing probe.
        knn_size (int): Short side of a photo in the kNN probe; a view covers 0.6 of a photo on average, so objects are
            then as large as in pre-training.
        anneal (bool): Whether the learning rate falls to 0; else the config's schedule stays, that of the beginning of
            a longer run.
        detector_epochs (dict[int, int]): Epochs of fine-tuning by per cent of the labels.
    """

    epochs: int
    view: int
    knn_size: int
    anneal: bool
    detector_epochs: dict[int, int]


SETTINGS = {
    'small': Setting(12, 80, 96, False, {10: 12, 100: 6}),
    'full': Setting(200, 160, 208, True, {10: 48, 100: 24}),
}


class Study:
    """Runs what is missing in its folder; every step leaves one file that says it is done.

    Args:
        data (Path): The annotated photos.
        out (Path): Where everything goes.
        name (str): Key of :data:`SETTINGS`; also the suffix of the configs.
        epochs (int, optional): Instead of the setting's.
        device (str): Of the probes.
        moco (Path, optional): MoCo v2's config, instead of the setting's.
    """

    def __init__(
        self,
        data: Path,
        out: Path,
        name: str,
        epochs: int | None = None,
        device: str = 'cpu',
        moco: Path | None = None,
    ) -> None:
        self.data, self.out, self.name, self.device = data.resolve(), out.absolute(), name, device
        self.moco = moco.resolve() if moco else CONFIGS / f'mocov2_{name}.py'
        self.setting = SETTINGS[name]
        self.epochs = epochs or self.setting.epochs
        for path in ('annotations/train.json', 'annotations/val.json', 'train', 'val'):
            if not (self.data / path).exists():
                raise InputError(
                    f'{self.data / path} does not exist; DATA needs annotations/train.json, val.json, train/, val/'
                )
        if moco:
            self._check_moco()
        self._content = json.loads((self.data / 'annotations/train.json').read_text(encoding='utf-8'))
        self._claim()
        self.photos = len(self._content['images'])

    def _check_moco(self) -> None:
        """Refuses another MoCo v2 than one that differs from CCOP in its recipe alone: epochs are counted in steps."""
        mine, ccop = read_config(self.moco), Config.fromfile(self.config('ccop'))
        if mine.get('model', {}).get('type') != 'MoCo':
            raise InputError(f"--moco {self.moco}: model.type is not 'MoCo'")
        backbones = [dict(config.model.backbone, out_indices=None) for config in (mine, ccop)]
        if backbones[0] != backbones[1] or mine.train_dataloader != ccop.train_dataloader:
            raise InputError(
                f'--moco {self.moco}: backbone and train_dataloader must be those of {self.config("ccop")}; '
                f"begin it with _base_ = ['{CONFIGS / f'mocov2_{self.name}.py'}']"
            )

    def _claim(self) -> None:
        """Refuses a folder in which another study was begun, or in which one is running."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.out / 'lock', 'w')  # noqa: SIM115  held, and let go by the system when the process ends
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f'a study is running in {self.out}; wait for it, or name another --out') from None
        recipe = ''.join(Config.fromfile(self.config(method)).dump() for method in ('ccop', 'mocov2'))
        recipe += repr((ABLATIONS, BOXES))
        digest = hashlib.sha256(recipe.encode()).hexdigest()
        recipes = dict(moco=str(self.moco), configs=digest)
        mine = dict(data=str(self.data), setting=self.name, epochs=self.epochs, **recipes)
        file = self.out / 'study.json'
        if file.is_file() and json.loads(file.read_text(encoding='utf-8')) != mine:
            raise InputError(f'{self.out} holds another study ({file.read_text().strip()}); name another --out')
        with atomic_write(file, 'w') as handle:
            json.dump(mine, handle)

    def run_tool(self, title: str, done: Path, *command) -> None:
        """Runs a tool of the project unless its result is there."""
        if done.exists():
            return
        command = [str(part) for part in command]
        with open(self.out / 'commands.txt', 'a', encoding='utf-8') as file:
            file.write(f'python {shlex.join(command)}\n')
        log = self.out / 'logs' / f'{done.parent.name}-{done.stem}.log'
        demo.run_command(title, [sys.executable, ROOT / command[0], *command[1:]], log)
        if not done.exists():
            raise InputError(f'"{title}" ended without {done}; its output: {log}')

    def subset(self, count: int, seed: int, labelled: bool) -> Path:
        """A json with ``count`` photos of train/, drawn with a seed, with or without their annotations."""
        path = self.out / 'data' / f'train_{count}_{f"labelled_{seed}" if labelled else "unlabelled"}.json'
        if not path.exists():
            images = sorted(self._content['images'], key=lambda image: image['id'])
            kept = sorted(random.Random(seed).sample(images, count), key=lambda image: image['id'])
            ids = {image['id'] for image in kept} if labelled else set()
            annotations = [one for one in self._content['annotations'] if one['image_id'] in ids]
            content = {'images': kept, 'annotations': annotations, 'categories': self._content['categories']}
            with atomic_write(path, 'w') as file:
                json.dump(content, file)
        return path

    def propose(self, kind: str = 'selective-search') -> Path:
        """Proposals of the photos for pre-training, by a ``--method`` of tools/propose.py."""
        photos, search = self.subset(self.photos, 0, labelled=False), kind == 'selective-search'
        out = self.out / ('proposals.npz' if search else f'proposals-{kind}.npz')
        tool = ['tools/propose.py', photos, '--image-root', self.data / 'train', '--out', out, '--skip-bad']
        if not search:
            tool += ['--method', kind]
        if kind == 'ground-truth':
            tool += ['--annotations', self.data / 'annotations/train.json']
        self.run_tool('propose' if search else f'propose: {kind}', out, *tool)
        return out

    def config(self, method: str) -> Path:
        """The config of a method without data: its model."""
        return self.moco if method.startswith('mocov2') else CONFIGS / f'ccop_{self.name}.py'

    def run_config(self, method: str, seed: int) -> Path:
        """The config of a run, once :meth:`pretrain` has written it; of random weights the method's."""
        return self.config(method) if method == 'random' else self.out / f'{method}-{seed}.py'

    def pretrain(self, method: str, seed: int) -> Path | None:
        """Pre-trains; returns the checkpoint, None for random weights."""
        if method == 'random':
            return None
        epochs, changes, begin = self.epochs, {}, []
        if method == 'random-bn':
            epochs, changes = 1, {'optim_wrapper': dict(optimizer=dict(lr=0.0))}
        elif method == 'mocov2-time':
            # Rounded up, for the benefit of MoCo v2.
            epochs = math.ceil(self.epochs * self.step_ratio())
            schedule = Config.fromfile(self.config(method)).param_scheduler
            lasting = not self.setting.anneal and all('end' in part for part in schedule)
            if lasting and epochs > self.epochs:
                # Its beginning is the shorter run: the schedule does not depend on the number of epochs.
                begin = [self.pretrain('mocov2', seed)]
        work_dir = self.out / f'{method}-{seed}'
        config = self.pretrain_config(method, seed, epochs, changes)
        checkpoint = work_dir / f'epoch_{epochs}.pth'
        title = f'pre-train: {method}, seed {seed}, {epochs} epochs'
        if begin and find_newest(work_dir) is not None:
            begin = []  # it has gone on since
        self.run_tool(title, checkpoint, 'tools/train.py', config, '--work-dir', work_dir, '--resume', *begin)
        return checkpoint

    def pretrain_config(self, method: str, seed: int, epochs: int, changes: dict) -> Path:
        """Writes the config of a run."""
        proposals = self.propose(BOXES.get(method, 'selective-search'))
        dataset = dict(
            data_root=None,
            ann_file=str(self.subset(self.photos, 0, labelled=False)),
            data_prefix=dict(img_path=f'{self.data / "train"}/'),
            proposal_file=str(proposals),
        )
        base = Config.fromfile(self.config(method))
        batch = base.train_dataloader.batch_size
        if self.photos < batch:
            raise InputError(f'{self.photos} photos are fewer than the {batch} of a step')
        settings = {
            'train_dataloader': dict(dataset=dataset),
            'train_cfg': dict(max_epochs=epochs),
            'default_hooks': dict(checkpoint=dict(interval=max(1, epochs // 5))),
            'randomness': dict(seed=seed),
        }
        if self.setting.anneal:
            falling = dict(type='CosineAnnealingLR', T_max=epochs, eta_min=0.0, by_epoch=True)
            settings['param_scheduler'] = [dict(falling, convert_to_iter_based=True)]
        if method.startswith('mocov2'):
            # As CCOP's queue_len='auto': 55 % of an epoch, up to MoCo's multiple of the batch.
            wanted = min(65536, 0.554 * self.photos)
            settings['model'] = dict(queue_len=max(batch, round(wanted / batch) * batch))
        elif method == 'image':
            dataset['num_proposals'] = 0
        elif method == 'true-boxes':
            dataset['allow_ground_truth'] = True
        elif method in ABLATIONS:
            settings['model'] = ABLATIONS[method]
        return demo._write_config(self.run_config(method, seed), self.config(method), {**settings, **changes})

    def step_ratio(self) -> float:
        """Seconds of a CCOP step over those of a MoCo v2 step, measured in turn: the speed of a machine may change."""
        done = self.out / 'clock.json'
        if not done.exists():
            configs = [self.pretrain_config(method, 0, self.epochs, {}) for method in ('ccop', 'mocov2')]
            self.run_tool('time steps of CCOP and MoCo v2', done, 'benchmarks/study_clock.py', *configs, '--json', done)
        return json.loads(done.read_text(encoding='utf-8'))['ratio']

    def probe_all(self, methods: list[str], seeds: list[int], jobs: int) -> list[Outcome]:
        """:meth:`probe` of every method and seed, ``jobs`` side by side; in the order of seeds and methods."""
        # Before anything goes side by side, for several runs need them; the clock needs selective search's.
        trained = [method for method in methods if method != 'random']
        timed = ['ccop'] if 'mocov2-time' in methods else []
        for kind in dict.fromkeys(BOXES.get(method, 'selective-search') for method in trained + timed):
            self.propose(kind)
        if 'mocov2-time' in methods:
            self.step_ratio()  # with the cores to itself
        lanes = run_lanes(methods, seeds)
        outcomes = {}
        for found in side_by_side(lambda lane: [self.probe(*run) for run in lane], lanes, jobs):
            outcomes.update({(one.method, one.seed): one for one in found})
        return [outcomes[method, seed] for seed in seeds for method in methods]

    def step_time(self, method: str, seed: int) -> float:
        """Median seconds of a training step in the run itself, loading included."""
        return statistics.median(
            row['time'] for row in demo.read_scalars(self.out / f'{method}-{seed}') if 'time' in row
        )

    def probe(self, method: str, seed: int) -> Outcome:
        """Pointing and kNN recall of a method."""
        checkpoint = self.pretrain(method, seed)
        folder = self.out / f'{method}-{seed}'
        folder.mkdir(parents=True, exist_ok=True)
        weights = [checkpoint] if checkpoint else []
        common = ['--annotations', self.data / 'annotations/val.json', '--images', self.data / 'val']
        common += ['--device', self.device, '--batch-size', 64, '--seed', seed]
        pointing, knn = folder / 'pointing.json', {}
        tool = [
            'tools/inspect/pointing.py',
            self.run_config(method, seed),
            *weights,
            *common,
            '--size',
            self.setting.view,
            '--repeats',
            4,
        ]
        self.run_tool(f'pointing: {method}, seed {seed}', pointing, *tool, '--json', pointing)
        for stage in ('C4', 'C5'):
            knn[stage] = folder / f'knn_{stage}.json'
            tool = ['tools/inspect/knn_recall.py', self.run_config(method, seed), *weights, *common, '--stage', stage]
            tool += ['--size', self.setting.knn_size, '--json', knn[stage]]
            self.run_tool(f'kNN recall on {stage}: {method}, seed {seed}', knn[stage], *tool)
        cost = {}
        if checkpoint:
            epochs = int(checkpoint.stem.removeprefix('epoch_'))
            step = self.step_time(method, seed)
            cost = dict(epochs=epochs, step_s=step, steps=epochs * (self.photos // self._batch(method)))
            if method.startswith('mocov2'):
                cost['config'] = self.moco.stem
            if method == 'mocov2-time':
                cost['ratio'] = self.step_ratio()
        return Outcome(method, seed, pointing, knn, cost)

    def _batch(self, method: str) -> int:
        return Config.fromfile(self.config(method)).train_dataloader.batch_size

    def detect(self, method: str, seed: int, share: int) -> Path:
        """Fine-tunes Faster R-CNN on ``share`` per cent of the labels and tests it; returns the metrics' file."""
        name, config = f'{method}-{seed}-ap{share}', self.detector_config(method, seed, share)
        work_dir = self.out / name
        checkpoint, metrics = work_dir / f'epoch_{self.setting.detector_epochs[share]}.pth', work_dir / 'ap.json'
        if not metrics.exists():
            title = f'fine-tune: {method}, seed {seed}, {share} % of the labels'
            self.run_tool(title, checkpoint, 'tools/train.py', config, '--work-dir', work_dir, '--resume')
        test = ['tools/test.py', config, checkpoint, '--work-dir', work_dir, '--out', metrics]
        self.run_tool(f'test: {method}, seed {seed}, {share} % of the labels', metrics, *test)
        return metrics

    def detector_config(self, method: str, seed: int, share: int) -> Path:
        """Writes the config of a fine-tuning."""
        count = round(len(self._content['images']) * share / 100)
        train = self.subset(count, seed, labelled=True)
        epochs = self.setting.detector_epochs[share]
        base = CONFIGS / f'faster_rcnn_{self.name}.py'
        classes = tuple(category['name'] for category in self._content['categories'])
        data = dict(data_root='', metainfo=dict(classes=classes))
        val = self.data / 'annotations/val.json'
        model = dict(roi_head=dict(bbox_head=dict(num_classes=len(classes))), **self._initialize(method, seed))
        settings = {
            'model': model,
            'train_dataloader': dict(
                dataset=dict(**data, ann_file=str(train), data_prefix=dict(img=f'{self.data / "train"}/'))
            ),
            'test_dataloader': dict(
                dataset=dict(**data, ann_file=str(val), data_prefix=dict(img=f'{self.data / "val"}/'))
            ),
            'test_evaluator': dict(ann_file=str(val)),
            'train_cfg': dict(max_epochs=epochs),
            'randomness': dict(seed=seed),
        }
        return demo._write_config(self.out / f'{method}-{seed}-ap{share}.py', base, settings)

    def _initialize(self, method: str, seed: int) -> dict:
        """What the detector's config says of its weights."""
        checkpoint = self.pretrain(method, seed)
        if checkpoint is None:
            return {}
        name = 'BackbonePretrained' if method.startswith('mocov2') else 'CCOPPretrained'
        return dict(init_cfg=dict(type=f'mmselfsup.{name}', checkpoint=str(checkpoint)))


def run_lanes(methods: list[str], seeds: list[int]) -> list[list[tuple[str, int]]]:
    """Runs (method, seed) that do not need each other, longest first; both MoCo v2's are one lane, in order.

    MoCo v2 of equal wall-clock goes on where that of equal photos ended.
    """
    moco = [method for method in ('mocov2', 'mocov2-time') if method in methods]
    groups = [['ccop'], moco, *([method] for method in (*ABLATIONS, *BOXES, 'image', 'random-bn', 'random'))]
    kept = [group for group in groups if group and group[0] in methods]
    return [[(method, seed) for method in group] for group in kept for seed in seeds]


def side_by_side(function: Callable, items: list, jobs: int) -> Iterator:
    """Results of a function as they come, ``jobs`` at once; after a failure no further one is begun."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'data', type=Path, help='folder with annotations/train.json, annotations/val.json, train/, val/'
    )
    parser.add_argument('--out', type=Path, required=True, help='folder for everything that is written')
    parser.add_argument('--setting', choices=SETTINGS, default='small', help='its size (default: %(default)s)')
    parser.add_argument(
        '--methods',
        nargs='+',
        choices=METHODS,
        default=DEFAULT_METHODS,
        help='what is compared (default: %(default)s); no-*: CCOP without a part, *-boxes: on other boxes, image: '
        'without objects, random-bn: random weights with batch statistics',
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument(
        '--labels', type=int, nargs='*', choices=(10, 100), default=[], help='per cent of the labels to fine-tune on'
    )
    parser.add_argument('--epochs', type=int, help="of CCOP's pre-training, instead of the setting's")
    parser.add_argument(
        '--moco',
        type=Path,
        help="config of MoCo v2, instead of the setting's, which has CCOP's recipe; the full setting sets its schedule",
    )
    parser.add_argument(
        '--jobs', type=int, default=1, help='trainings side by side, which share the cores (default: %(default)s)'
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='of the probes')
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv=None):
    args = parse_args(argv)
    if args.jobs < 1:
        raise InputError(f'--jobs must be at least 1, got {args.jobs}')
    if args.jobs > 1:
        os.environ.setdefault('OMP_NUM_THREADS', str(max(1, torch.get_num_threads() // args.jobs)))
    study = Study(args.data, args.out, args.setting, args.epochs, args.device, args.moco)
    methods = [method for method in METHODS if method in args.methods]
    outcomes = study.probe_all(methods, args.seeds, args.jobs)
    # The cheap part's result first: it is there even if the detectors are not waited for.
    table = write_report(study.out, outcomes)
    detected = [one for one in outcomes if one.method != 'random-bn'] if args.labels else []

    def detect(one: Outcome) -> tuple[Outcome, dict[int, Path]]:
        return one, {share: study.detect(one.method, one.seed, share) for share in args.labels}

    for outcome, metrics in side_by_side(detect, detected, args.jobs):
        outcome.ap = metrics
        table = write_report(study.out, outcomes)
    print(f'\n{table}\nwritten: {study.out / "results.md"}, results.png, results.svg, commands.txt')


if __name__ == '__main__':
    main()
