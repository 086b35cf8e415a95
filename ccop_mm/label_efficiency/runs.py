"""The runs of a study: name, config file, and stored metrics."""

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ccop_mm.label_efficiency.detector import StudyDetector
from ccop_mm.label_efficiency.weights import OWN, InitialWeights
from ccop_mm.preflight.splits import find_splits
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write

#: Bounds of the default number of iterations.
MIN_ITERATIONS, MAX_ITERATIONS = 300, 1000
#: Warm-up: fraction of the iterations, largest number, and factor of the learning rate at its start.
WARMUP_FRACTION, MAX_WARMUP, WARMUP_START = 0.1, 500, 0.01
#: Files in the folder of a run, and the folder of mmengine's files, which include a config of the same name.
CONFIG, METRICS, LOG, WORK_DIR = 'config.py', 'metrics.json', 'log.txt', 'work_dir'


@dataclass(frozen=True)
class Run:
    """A training of the detector, and its test.

    Args:
        weights (InitialWeights): Initial weights.
        num_images (int): Number of training images.
        factor (float): Multiple of the detector's learning rate.
        seed (int): Seed of the subset, of the initialization and of the training.
        iterations (int): Length of the training.
        is_final (bool): Whether it is measured on the validation data, rather than on the selection split.
    """

    weights: InitialWeights
    num_images: int
    factor: float
    seed: int
    iterations: int
    is_final: bool

    @property
    def name(self) -> str:
        """Name of its folder, which is unique in a study."""
        kind = 'final' if self.is_final else 'rate'
        return f'{self.weights.name}-{self.num_images}-{kind}-x{self.factor:g}-seed{self.seed}'

    def __str__(self) -> str:
        kind = '' if self.is_final else ' (choice of the rate)'
        return f'{self.weights.name}, {self.num_images} images, rate x {self.factor:g}, seed {self.seed}{kind}'


@dataclass(frozen=True)
class RunData:
    """Files of a run.

    Args:
        train_file (Path): COCO json of the training images.
        test_file (Path): COCO json of the images that AP is measured on.
        test_root (str): Folder of these images.
    """

    train_file: Path
    test_file: Path
    test_root: str


def default_iterations(num_images: int, total: int, batch_size: int, train_cfg: Mapping[str, Any]) -> int:
    """Returns the number of iterations of a run: the epochs of the config over its images, within bounds.

    Fewer than 300 iterations train no detector from random weights. More than 1,000 would make a study of dozens of
    runs take hours.

    Args:
        num_images (int): Number of training images of the run.
        total (int): Number of all training images, for configs whose length is a number of iterations.
        batch_size (int): Images per iteration.
        train_cfg (Mapping): ``train_cfg`` of the detector.
    """
    if train_cfg.get('max_epochs'):
        own = math.ceil(train_cfg['max_epochs'] * num_images / batch_size)
    else:
        own = math.ceil((train_cfg.get('max_iters') or 0) * num_images / total)
    return min(max(own, MIN_ITERATIONS), MAX_ITERATIONS)


def learning_rate_schedule(iterations: int) -> list[dict[str, Any]]:
    """Returns mmengine's config of a linear warm-up, followed by a cosine decay to 0, by iteration."""
    warmup = min(MAX_WARMUP, round(WARMUP_FRACTION * iterations))
    cosine = dict(type='CosineAnnealingLR', by_epoch=False, begin=warmup, end=iterations, T_max=iterations - warmup)
    linear = dict(type='LinearLR', start_factor=WARMUP_START, by_epoch=False, begin=0, end=warmup)
    return [*([linear] if warmup > 1 else []), dict(cosine, eta_min=0.0)]


def run_settings(run: Run, detector: StudyDetector, data: RunData, folder: Path) -> dict[str, Any]:
    """Returns the config of a run.

    Optimizer, batch size, pipelines and hooks are those of the detector's config. There is no validation during the
    training; one checkpoint is saved at the end.

    Args:
        run (Run): The run.
        detector (StudyDetector): The detector.
        data (RunData): Its data.
        folder (Path): Folder of the run.
    """
    cfg = Config(copy.deepcopy(detector.settings))
    if run.weights.source != OWN:
        cfg.model = copy.deepcopy(detector.random_model)
        cfg.load_from = None
    if initializer := run.weights.init_cfg(run.seed):
        cfg.model.init_cfg = initializer
    if run.weights.digests:
        cfg.initial_weights = dict(run.weights.digests)[run.seed]  # a run with another file has another config
    (train,), (test,) = (find_splits(cfg, (part,)) for part in ('train', 'val'))
    train.config.ann_file, test.config.ann_file = str(data.train_file), str(data.test_file)
    test.config.data_prefix['img'] = f'{data.test_root}/'
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    cfg.test_dataloader, cfg.val_dataloader = cfg.val_dataloader, None
    cfg.val_evaluator = cfg.val_cfg = None
    cfg.test_evaluator = dict(type='CocoMetric', ann_file=str(data.test_file), metric='bbox')
    cfg.test_cfg = dict(type='TestLoop')
    # A run is never validated: the interval exceeds its length.
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=run.iterations, val_interval=run.iterations + 1)
    cfg.param_scheduler = learning_rate_schedule(run.iterations)
    cfg.optim_wrapper.optimizer.lr = float(f'{detector.rate * run.factor:.6g}')
    cfg.pop('auto_scale_lr', None)
    cfg.randomness = dict(seed=run.seed)
    hooks = cfg.get('default_hooks') or {}
    hooks['logger'] = dict(type='LoggerHook', interval=max(1, min(50, run.iterations // 10)))
    hooks['checkpoint'] = dict(
        type='mmselfsup.SafeCheckpointHook',
        interval=run.iterations,
        by_epoch=False,
        save_optimizer=False,
        save_param_scheduler=False,
        max_keep_ckpts=1,
    )
    hooks.pop('visualization', None)
    cfg.default_hooks = hooks
    cfg.log_processor = dict(type='LogProcessor', window_size=20, by_epoch=False)
    cfg.visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    cfg.resume = False
    cfg.work_dir = str(folder / WORK_DIR)
    return cfg.to_dict()


def format_settings(settings: Mapping[str, Any]) -> str:
    """Formats a config as a Python file.

    Raises:
        InputError: A value is none that can be written, such as a function.
    """
    lines = []
    for name, value in settings.items():
        if name.isidentifier():
            lines.append(f'{name} = {_format(value, name)}')
    return '\n'.join(lines) + '\n'


def _format(value: Any, path: str) -> str:
    if isinstance(value, Mapping):
        items = ', '.join(f'{key!r}: {_format(item, str(path) + "." + str(key))}' for key, item in value.items())
        return f'{{{items}}}'
    if isinstance(value, (list, tuple)):
        items = ', '.join(_format(item, path) for item in value)
        return f'[{items}]' if isinstance(value, list) else f'({items},)' if value else '()'
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return repr(value)
    raise InputError(f'{path} of the config is a {type(value).__name__}, which cannot be written to a file: replace it')


@dataclass(frozen=True)
class RunFolder:
    """Folder of a run with its config, its log and, when it is finished, its metrics.

    Args:
        path (Path): Folder.
        text (str): Content of the config.
    """

    path: Path
    text: str

    @property
    def digest(self) -> str:
        """Checksum of the config."""
        return hashlib.blake2b(self.text.encode(), digest_size=16).hexdigest()

    @property
    def config(self) -> Path:
        """Config file."""
        return self.path / CONFIG

    @property
    def log(self) -> Path:
        """File with the output of the process."""
        return self.path / LOG

    def prepare(self) -> None:
        """Writes the config, and removes what an unfinished run has left."""
        self.delete_large_files()
        (self.path / METRICS).unlink(missing_ok=True)
        with atomic_write(self.config, 'w') as file:
            file.write(self.text)

    def delete_large_files(self) -> None:
        """Deletes checkpoints and detections."""
        for pattern in ('*.pth', 'last_checkpoint', 'detections.*', '.*.tmp'):
            for path in (self.path / WORK_DIR).glob(pattern):
                path.unlink()

    def read_metrics(self) -> dict[str, Any] | None:
        """Returns the metrics if a run with this config has finished; otherwise None."""
        try:
            stored = json.loads((self.path / METRICS).read_text(encoding='utf-8'))
        except (OSError, ValueError):
            return None
        return stored if isinstance(stored, dict) and stored.get('config') == self.digest else None


def describe_failure(log: Path) -> str:
    """Returns the last line of a log that is not empty, which usually is the message of an exception."""
    try:
        lines: Sequence[str] = log.read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:
        return 'it wrote no log'
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), 'its log is empty')
