"""The runs of a study: proposals, pre-training, probes and fine-tuning, each by a tool of this repository."""

import fcntl
import hashlib
import json
import math
import random
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from study_methods import ABLATIONS, METHODS, read_ablation
from study_report import RunResult
from study_settings import CONFIGS, SETTINGS

from ccop_mm.models.queue import suggest_moco_length
from ccop_mm.utils.coco_json import write_subset
from ccop_mm.utils.commands import run_command
from ccop_mm.utils.config_file import read_config, write_config
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write
from ccop_mm.utils.train_log import read_scalars
from ccop_mm.weights.newest_checkpoint import find_newest

ROOT = Path(__file__).resolve().parents[1]


class Study:
    """Runs the missing steps of a study in its output folder. A step is complete once its output file exists.

    Args:
        data (Path): Dataset folder with annotations/train.json, annotations/val.json, train/ and val/.
        out (Path): Output folder; created if needed.
        name (str): Key of :data:`SETTINGS`; also the suffix of the config files.
        epochs (int, optional): Pre-training epochs of CCOP; the setting's by default.
        device (str): Device of the probes.
        moco (Path, optional): Config of MoCo v2; the setting's by default.
        ccop (Path, optional): Config of CCOP, also of random weights; the setting's by default.
        anneal (bool, optional): Whether the learning rate is annealed to 0 after the warm-up of the config, if it has
            one; the setting's by default.

    Raises:
        InputError: The dataset is incomplete, a config is not comparable with the setting's, or the output folder
            belongs to another study or is in use.
    """

    def __init__(
        self,
        data: Path,
        out: Path,
        name: str,
        epochs: int | None = None,
        device: str = 'cpu',
        moco: Path | None = None,
        ccop: Path | None = None,
        anneal: bool | None = None,
    ) -> None:
        self.data, self.out, self.name, self.device = data.resolve(), out.absolute(), name, device
        self.moco = moco.resolve() if moco else CONFIGS / f'mocov2_{name}.py'
        self.ccop = ccop.resolve() if ccop else CONFIGS / f'ccop_{name}.py'
        self.setting = SETTINGS[name]
        self.anneal = self.setting.anneal if anneal is None else anneal
        self.epochs = epochs or self.setting.epochs
        for path in ('annotations/train.json', 'annotations/val.json', 'train', 'val'):
            if not (self.data / path).exists():
                raise InputError(
                    f'{self.data / path} does not exist; DATA must contain annotations/train.json, '
                    'annotations/val.json, train/ and val/'
                )
        for option, path, model in (('--moco', moco, 'MoCo'), ('--ccop', ccop, 'CCOP')):
            if path:
                self._check_config(option, path.resolve(), model)
        self._annotations = json.loads((self.data / 'annotations/train.json').read_text(encoding='utf-8'))
        self._lock_folder()
        self.num_images = len(self._annotations['images'])

    def _check_config(self, option: str, path: Path, model: str) -> None:
        """Rejects a config whose model, backbone or dataloader differ from the setting's: epochs would not compare."""
        config, standard = read_config(path), Config.fromfile(CONFIGS / f'ccop_{self.name}.py')
        if config.get('model', {}).get('type') != model:
            raise InputError(f"{option} {path}: model.type is not '{model}'")
        backbones = [dict(each.model.backbone, out_indices=None) for each in (config, standard)]
        if backbones[0] != backbones[1] or config.train_dataloader != standard.train_dataloader:
            base = CONFIGS / f'{"ccop" if model == "CCOP" else "mocov2"}_{self.name}.py'
            raise InputError(
                f'{option} {path}: backbone and train_dataloader must equal those of {CONFIGS}/ccop_{self.name}.py; '
                f"use _base_ = ['{base}']"
            )

    def _lock_folder(self) -> None:
        """Locks the output folder and records the study's settings; rejects a folder of another study."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.out / 'lock', 'w')  # noqa: SIM115  the lock is released when the process ends
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f'another process runs a study in {self.out}; wait or use another --out') from None
        configs = ''.join(Config.fromfile(self.base_config(method)).dump() for method in ('ccop', 'mocov2'))
        configs += repr([(name, METHODS[name].proposals, read_ablation(name)) for name in ABLATIONS])
        identity = dict(
            data=str(self.data),
            setting=self.name,
            epochs=self.epochs,
            moco=str(self.moco),
            ccop=str(self.ccop),
            anneal=self.anneal,
            configs=hashlib.sha256(configs.encode()).hexdigest(),
        )
        file = self.out / 'study.json'
        if file.is_file() and json.loads(file.read_text(encoding='utf-8')) != identity:
            raise InputError(
                f'{self.out} contains a study with other settings ({file.read_text().strip()}); use another --out'
            )
        with atomic_write(file, 'w') as handle:
            json.dump(identity, handle)

    def run_tool(self, title: str, output: Path, *command: Any, again: bool = False) -> None:
        """Runs a tool of this repository unless its output file exists; appends the command to OUT/commands.txt.

        Args:
            title (str): Title of the step.
            output (Path): File that the tool writes at its end.
            *command: Path of the tool in the repository, and its arguments.
            again (bool): Whether the tool is also run if the file exists.

        Raises:
            InputError: The tool failed or did not write ``output``.
        """
        if output.exists() and not again:
            return
        words = [str(part) for part in command]
        with open(self.out / 'commands.txt', 'a', encoding='utf-8') as file:
            file.write(f'python {shlex.join(words)}\n')
        log = self.out / 'logs' / f'{output.parent.name}-{output.stem}.log'
        run_command(title, [sys.executable, ROOT / words[0], *words[1:]], log, ROOT)
        if not output.exists():
            raise InputError(f'"{title}" ended without writing {output}; see its log {log}')

    def subset(self, count: int, seed: int, labeled: bool) -> Path:
        """Writes a COCO json with ``count`` random images of train/, with or without their annotations."""
        path = self.out / 'data' / f'train_{count}_{f"labeled_{seed}" if labeled else "unlabeled"}.json'
        if not path.exists():
            images = sorted(self._annotations['images'], key=lambda image: image['id'])
            sampled = random.Random(seed).sample(images, len(images))[
                :count
            ]  # a smaller subset is part of a larger one
            annotations = self._annotations['annotations'] if labeled else []
            content = {'images': images, 'annotations': annotations, 'categories': self._annotations['categories']}
            write_subset(content, path, {image['id'] for image in sampled})
        return path

    def propose(self, kind: str = 'selective-search') -> Path:
        """Generates proposals for the pre-training images; ``kind`` is a ``--method`` of tools/propose.py."""
        images, search = self.subset(self.num_images, 0, labeled=False), kind == 'selective-search'
        output = self.out / ('proposals.npz' if search else f'proposals-{kind}.npz')
        command = ['tools/propose.py', images, '--image-root', self.data / 'train', '--out', output, '--skip-bad']
        if not search:
            command += ['--method', kind]
        if kind == 'ground-truth':
            command += ['--annotations', self.data / 'annotations/train.json']
        self.run_tool('propose' if search else f'propose: {kind}', output, *command)
        return output

    def base_config(self, method: str) -> Path:
        """Returns the config of a method without data, schedule and seed."""
        return self.moco if method.startswith('mocov2') else self.ccop

    def run_config(self, method: str, seed: int) -> Path:
        """Returns the config of a run, which :meth:`pretrain` writes; random weights have the base config."""
        return self.base_config(method) if method == 'random' else self.out / f'{method}-{seed}.py'

    def pretrain(self, method: str, seed: int) -> Path | None:
        """Pre-trains a method; returns the last checkpoint, or None for random weights."""
        if method == 'random':
            return None
        epochs: int = self.epochs
        changes: dict[str, Any] = {}
        first_part: list[Path | None] = []  # checkpoint that the run continues from, if any
        if method == 'random-bn':
            epochs, changes = 1, {'optim_wrapper': dict(optimizer=dict(lr=0.0))}
        elif method == 'mocov2-time':
            epochs = math.ceil(self.epochs * self.step_ratio())  # rounded up, in favor of MoCo v2
            schedule = Config.fromfile(self.base_config(method)).param_scheduler
            # If the schedule does not depend on the number of epochs, the shorter run is the start of the longer one.
            fixed_schedule = not self.anneal and all('end' in part for part in schedule)
            if fixed_schedule and epochs > self.epochs:
                first_part = [self.pretrain('mocov2', seed)]
        work_dir = self.out / f'{method}-{seed}'
        config = self.pretrain_config(method, seed, epochs, changes)
        checkpoint = work_dir / f'epoch_{epochs}.pth'
        title = f'pre-train: {method}, seed {seed}, {epochs} epochs'
        if first_part and find_newest(work_dir) is not None:
            first_part = []  # the run has checkpoints of its own
        self.run_tool(title, checkpoint, 'tools/train.py', config, '--work-dir', work_dir, '--resume', *first_part)
        return checkpoint

    def pretrain_config(self, method: str, seed: int, epochs: int, changes: dict[str, Any]) -> Path:
        """Writes the config of a pre-training run.

        Args:
            method (str): Key of :data:`METHODS`.
            seed (int): Random seed of the run.
            epochs (int): Length of the run.
            changes (dict): Further settings, which override all others.
        """
        base = Config.fromfile(self.base_config(method))
        batch_size = base.train_dataloader.batch_size
        if self.num_images < batch_size:
            raise InputError(f'{self.data / "train"}: {self.num_images} images are fewer than a batch of {batch_size}')
        dataset = dict(
            data_root=None,
            ann_file=str(self.subset(self.num_images, 0, labeled=False)),
            data_prefix=dict(img_path=f'{self.data / "train"}/'),
            proposal_file=str(self.propose(METHODS[method].proposals)),
        )
        settings: dict[str, Any] = {
            'train_dataloader': dict(dataset=dataset),
            'train_cfg': dict(max_epochs=epochs),
            'default_hooks': dict(checkpoint=dict(interval=max(1, epochs // 5))),
            'randomness': dict(seed=seed),
        }
        if self.anneal:
            warmup = [part for part in base.param_scheduler if part.get('end') and not part.get('by_epoch', True)]
            begin, end = max((part['end'] for part in warmup), default=0), epochs * (self.num_images // batch_size)
            cosine = dict(
                type='CosineAnnealingLR', by_epoch=False, begin=begin, end=end, T_max=end - begin, eta_min=0.0
            )
            settings['param_scheduler'] = [*map(dict, warmup), cosine]
        if method.startswith('mocov2'):
            settings['model'] = dict(queue_len=suggest_moco_length(self.num_images, batch_size))
        elif method in ABLATIONS:
            settings = merge_settings(read_ablation(method), settings)
        return write_config(self.run_config(method, seed), self.base_config(method), merge_settings(settings, changes))

    def step_ratio(self) -> float:
        """Returns the time of a CCOP step divided by that of a MoCo v2 step, measured by study_clock.py."""
        output = self.out / 'clock.json'
        if not output.exists():
            configs = [self.pretrain_config(method, 0, self.epochs, {}) for method in ('ccop', 'mocov2')]
            command = ['studies/study_clock.py', *configs, '--json', output]
            self.run_tool('time steps of CCOP and MoCo v2', output, *command)
        return json.loads(output.read_text(encoding='utf-8'))['ratio']

    def step_time(self, method: str, seed: int) -> float:
        """Returns the median duration of a training step in the run's log, in seconds, data loading included."""
        return statistics.median(row['time'] for row in read_scalars(self.out / f'{method}-{seed}') if 'time' in row)

    def probe(self, method: str, seed: int) -> RunResult:
        """Pre-trains a method and measures pointing game accuracy and kNN recall."""
        checkpoint = self.pretrain(method, seed)
        folder = self.out / f'{method}-{seed}'
        folder.mkdir(parents=True, exist_ok=True)
        model = [self.run_config(method, seed), *([checkpoint] if checkpoint else [])]
        common = ['--annotations', self.data / 'annotations/val.json', '--images', self.data / 'val']
        common += ['--device', self.device, '--batch-size', 64, '--seed', seed]
        pointing = folder / 'pointing.json'
        command = ['tools/analysis_tools/pointing.py', *model, *common, '--size', self.setting.view, '--repeats', 4]
        self.run_tool(f'pointing: {method}, seed {seed}', pointing, *command, '--json', pointing)
        knn = {}
        for stage in ('C4', 'C5'):
            knn[stage] = folder / f'knn_{stage}.json'
            command = ['tools/analysis_tools/knn_recall.py', *model, *common, '--stage', stage]
            command += ['--size', self.setting.knn_size, '--json', knn[stage]]
            self.run_tool(f'kNN recall on {stage}: {method}, seed {seed}', knn[stage], *command)
        cost: dict[str, Any] = {}
        if checkpoint:
            epochs = int(checkpoint.stem.removeprefix('epoch_'))
            batch_size = Config.fromfile(self.base_config(method)).train_dataloader.batch_size
            steps = epochs * (self.num_images // batch_size)
            cost = dict(epochs=epochs, step_s=self.step_time(method, seed), steps=steps)
            if method.startswith('mocov2'):
                cost['config'] = self.moco.stem
            if method == 'mocov2-time':
                cost['ratio'] = self.step_ratio()
        return RunResult(method, seed, pointing, knn, cost)

    def freeze(self, method: str, seed: int, percent: int, features: Sequence[str]) -> dict[str, Path]:
        """Measures the frozen-detector probe with ``percent`` % of the labels.

        Args:
            method (str): Key of :data:`METHODS`.
            seed (int): Random seed of the weights, the subset and the head.
            percent (int): Percentage of the labels.
            features (Sequence[str]): ``'backbone'``, ``'neck'`` or both. MoCo v2 has no neck.

        Returns:
            dict[str, Path]: Each of ``features`` that the method has -> output of the probe.
        """
        checkpoint = self.pretrain(method, seed)
        model = [self.run_config(method, seed), *([checkpoint] if checkpoint else [])]
        data = ['--train-annotations', self.labels(percent, seed), '--train-images', self.data / 'train']
        data += ['--annotations', self.data / 'annotations/val.json', '--images', self.data / 'val']
        results = {}
        for part in features:
            if part == 'neck' and method.startswith('mocov2'):
                continue
            output = self.out / f'{method}-{seed}' / f'frozen_{part}_{percent}.json'
            options = ['--size', self.setting.frozen_size, '--features', part, '--seeds', seed]
            command = ['tools/analysis_tools/frozen_detector.py', *model, *data, *options, '--device', self.device]
            title = f'frozen detector on the {part}: {method}, seed {seed}, {percent} % of the labels'
            self.run_tool(title, output, *command, '--json', output)
            results[part] = output
        return results

    def labels(self, percent: int, seed: int) -> Path:
        """Returns the annotation file with ``percent`` % of the training images, at least one."""
        return self.subset(max(1, round(len(self._annotations['images']) * percent / 100)), seed, labeled=True)

    def compare_detectors(self, methods: Sequence[str], seeds: Sequence[int], shares: Sequence[int], jobs: int) -> Path:
        """Fine-tunes a detector from the weights of each method on parts of the labels, by label_efficiency.py.

        Args:
            methods (Sequence[str]): Keys of :data:`METHODS`. Differences are from the first.
            seeds (Sequence[int]): Seeds of the pre-trainings; a detector starts from that of its own seed.
            shares (Sequence[int]): Percentages of the labels.
            jobs (int): Number of runs at a time.

        Returns:
            Path: Its results.md.
        """
        weights = []
        for method in methods:
            checkpoints = [self.pretrain(method, seed) for seed in seeds]
            name = f'{method}={self.out}/{method}-{{seed}}/{checkpoints[0].name}' if checkpoints[0] else method
            weights.append(name)
        detector, out = CONFIGS / self.setting.detector, self.out / 'detectors'
        command = ['tools/analysis_tools/label_efficiency.py', detector, '--weights', *weights, '--out', out]
        command += ['--shares', *shares, '--seeds', *seeds, '--extend', '--jobs', jobs]
        command += ['--annotations', self.data / 'annotations/train.json', '--images', self.data / 'train']
        command += ['--val-annotations', self.data / 'annotations/val.json', '--val-images', self.data / 'val']
        command += ['--class-agnostic'] if self.setting.class_agnostic else []
        command += ['--iterations', self.setting.iterations] if self.setting.iterations else []
        # Not skipped if it exists: the tool itself skips finished runs, and shares and seeds may have been added.
        self.run_tool('fine-tune detectors', out / 'results.md', *command, again=True)
        return out / 'results.md'


def merge_settings(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns ``settings`` with ``changes`` applied; dicts are merged, other values are replaced."""
    merged = dict(settings)
    for name, value in changes.items():
        nested = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge_settings(merged[name], value) if nested else value
    return merged
