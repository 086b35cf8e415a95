"""One call from a detector and images without labels to pre-trained weights and a fine-tuning config."""

import hashlib
import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from torch.nn.modules.batchnorm import _BatchNorm

from ccop_mm.engine import launch
from ccop_mm.engine.work_dir import claim_work_dir, earlier_checkpoints
from ccop_mm.models.encoder_layout import EncoderLayout
from ccop_mm.preflight import Report
from ccop_mm.preflight.config import check_options
from ccop_mm.pretrain.config_writer import (
    NUM_PROPOSALS,
    PROPOSALS,
    WEIGHTS,
    ImageSource,
    format_finetuning,
    format_pretraining,
    pretraining_settings,
)
from ccop_mm.pretrain.detector_config import Detector, Encoder, build_encoder, check_view, read_detector
from ccop_mm.pretrain.estimate import ImageStatistics, Sample, measure_store, sample_images, time_step
from ccop_mm.pretrain.output_folder import FINETUNE, PRETRAIN, OutputFolder, Request
from ccop_mm.pretrain.sizes import choose_batch_size, choose_sizes, choose_view_size
from ccop_mm.proposals.runner.run import generate_proposals
from ccop_mm.proposals.store import ProposalStore, load_proposals
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import ImageFile, ImageList, list_images
from ccop_mm.utils.text import format_duration
from ccop_mm.weights import EncoderPretrained, convert
from ccop_mm.weights.newest_checkpoint import find_newest

#: Value of ``weights`` that stands for the weights which the detector's own backbone starts from.
OWN_WEIGHTS = 'init_cfg'
#: Largest default number of processes that load images.
MAX_LOADERS = 8


@dataclass(frozen=True)
class PretrainResult:
    """Result of :func:`pretrain`; ``str()`` formats it for the terminal.

    Args:
        pretrain_config (Path): Config of the pre-training.
        finetune_config (Path): Config of the detector, initialized with ``weights``.
        checkpoint (str | None): Last checkpoint; None after a dry run.
        weights (Path | None): File with backbone and neck alone; None after a dry run.
        lines (tuple[str, ...]): Lines of the summary.
    """

    pretrain_config: Path
    finetune_config: Path
    checkpoint: str | None
    weights: Path | None
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return '\n'.join(self.lines)


def pretrain(
    detector_config: str | Path,
    images: str | Path,
    out: str | Path,
    weights: str | Path | None = None,
    epochs: int | str = 'auto',
    view_size: int | None = None,
    batch_size: int | None = None,
    image_root: str | Path | None = None,
    workers: int | None = None,
    options: dict | None = None,
    dry_run: bool = False,
    progress: bool = True,
) -> PretrainResult:
    """Pre-trains the backbone and the neck of a detector on images without labels.

    See :func:`ccop_mm.apis.pretrain` for the arguments and errors.
    """
    _check_arguments(epochs, view_size=view_size, batch_size=batch_size, workers=workers)
    folder = Path(os.path.abspath(out))
    # Everything that can be wrong is checked before the search for proposals, which may take hours.
    detector = read_detector(detector_config)
    encoder, layout = build_encoder(detector)
    init_cfg = _initializer(detector, weights)
    image_list = list_images(images, image_root)
    request = Request(
        detector=detector.reference,
        images=os.path.abspath(images),
        image_root=None if image_root is None else os.path.abspath(image_root),
        weights=None if init_cfg is None else init_cfg['checkpoint'],
        epochs=epochs,
        view_size=view_size,
        batch_size=batch_size,
        options=options or {},
        encoder=_digest(detector),
    )
    output = OutputFolder(folder, request)
    if init_cfg is not None and not output.is_started:
        EncoderPretrained(init_cfg['checkpoint'], init_cfg.get('prefix'))(encoder)
    store, sample = _propose(folder / PROPOSALS, image_list, workers, progress, dry_run)
    statistics = measure_store(store, NUM_PROPOSALS) if sample is None else sample.statistics
    num_loaders = min(_num_cores(), MAX_LOADERS) if workers is None else workers
    text, choices = _choose(detector, encoder, layout, statistics, request, init_cfg, image_list, num_loaders)
    if PRETRAIN in output.write(text, format_finetuning(detector)):
        for choice in choices:
            print_log(choice, logger='current')
    cfg = launch.load_config(folder / PRETRAIN)
    lines = _describe(detector, statistics, request, cfg)
    if dry_run:
        lines += _estimate(cfg, store, sample, statistics.num_images, workers or _num_cores())
        return PretrainResult(folder / PRETRAIN, folder / FINETUNE, None, None, tuple(lines))
    checkpoint = _train(cfg)
    _export(checkpoint, folder / WEIGHTS)
    command = ['python', 'tools/train.py', _shown(folder / FINETUNE), '--work-dir', _shown(folder / 'finetune')]
    lines += [
        f'checkpoint      {_shown(Path(checkpoint))}',
        f'weights         {_shown(folder / WEIGHTS)}',
        f'fine-tune       {shlex.join(command)}',
    ]
    return PretrainResult(folder / PRETRAIN, folder / FINETUNE, checkpoint, folder / WEIGHTS, tuple(lines))


def _check_arguments(epochs: int | str, **numbers: int | None) -> None:
    for name, value in {**numbers, 'epochs': None if epochs == 'auto' else epochs}.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            allowed = "a number of at least 1, or 'auto'" if name == 'epochs' else 'a number of at least 1'
            raise InputError(f'{name} must be {allowed}, got {value!r}')


def _initializer(detector: Detector, weights: str | Path | None) -> dict[str, Any] | None:
    """Returns the config of the initializer for the initial weights; None for random ones."""
    if weights is None:
        return None
    if weights == OWN_WEIGHTS:
        if detector.checkpoint is None:
            raise InputError(
                f'the backbone of {detector.reference} has no init_cfg with a checkpoint: pass a file as weights'
            )
        prefix = {} if detector.checkpoint_prefix is None else dict(prefix=detector.checkpoint_prefix)
        return dict(type='EncoderPretrained', checkpoint=detector.checkpoint, **prefix)
    is_remote = '://' in str(weights)
    return dict(type='EncoderPretrained', checkpoint=str(weights) if is_remote else os.path.abspath(weights))


def _digest(detector: Detector) -> str:
    parts = repr([detector.backbone, detector.neck, detector.data_preprocessor])
    return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


def _propose(
    file: Path, images: ImageList, workers: int | None, progress: bool, dry_run: bool
) -> tuple[ProposalStore, Sample | None]:
    """Returns the proposals of all images, which are generated unless they exist; in a dry run of a few images."""
    if file.exists():
        store = load_proposals(file)
        _check_images(store, images, file)
        print_log(f'proposals: {_shown(file)} is finished', logger='current')
        return store, None
    if dry_run:
        sample = sample_images(images, NUM_PROPOSALS)
        return sample.store, sample
    print_log(f'proposals: {len(images)} images', logger='current')
    print_log(f'proposals:\n{generate_proposals(images, file, workers=workers, progress=progress)}', logger='current')
    return load_proposals(file), None


def _check_images(store: ProposalStore, images: list[ImageFile], file: Path) -> None:
    """Raises :class:`InputError` if a proposals file is not that of these images."""
    stored = {(number, store.file_name(number)) for number in store.image_ids.tolist()}
    known = {(image.image_id, image.file_name) for image in images}
    missing = sorted(name for _, name in known - stored if name not in store.skipped)
    unknown = sorted(name for _, name in stored - known)
    if missing or unknown:
        raise InputError(
            f'{file} contains proposals of other images: {len(missing)} of {len(images)} images are not in it and '
            f'{len(unknown)} of it are not among them, for example {(missing or unknown)[0]}; use another folder'
        )


def _choose(
    detector: Detector,
    encoder: Encoder,
    layout: EncoderLayout,
    statistics: ImageStatistics,
    request: Request,
    init_cfg: Mapping[str, Any] | None,
    images: ImageList,
    num_loaders: int,
) -> tuple[str, list[str]]:
    """Chooses the sizes; returns the text of the pre-training config, and one line per choice to report."""
    divisor = detector.data_preprocessor.get('pad_size_divisor', 1)
    view_size, note = choose_view_size(request.view_size, statistics.short_sides, layout, divisor)
    check_view(encoder, view_size)
    is_gpu = get_device() == 'cuda'
    memory = torch.cuda.get_device_properties(0).total_memory if is_gpu else None
    sizes = choose_sizes(
        statistics.num_images,
        statistics.mean_proposals,
        choose_batch_size(request.batch_size, statistics.num_images, memory),
        None if isinstance(request.epochs, str) else request.epochs,
        continued=init_cfg is not None,
        batch_norm=any(isinstance(module, _BatchNorm) for module in encoder.backbone.modules()),
    )
    settings = pretraining_settings(
        detector, layout, sizes, view_size, _image_source(request.images, images), init_cfg, num_loaders, is_gpu
    )
    if request.options:
        settings = _apply_options(settings, request.options)
    notes = [note] if note else []
    choices = [*map(str, detector.changes), *notes, f'sizes: {sizes}']
    return format_pretraining(settings, detector, sizes, notes), choices


def _image_source(source: str, images: ImageList) -> ImageSource:
    if os.path.isdir(source):
        return ImageSource(source)
    depth = len(Path(images[0].file_name).parts)
    return ImageSource(str(images[0].path.parents[depth - 1]), source)


def _apply_options(settings: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    cfg, report = Config(settings), Report()
    check_options(cfg, options, report)
    report.log()
    report.raise_errors()
    cfg.merge_from_dict(options)
    return cfg.to_dict()


def _describe(detector: Detector, statistics: ImageStatistics, request: Request, cfg: Config) -> list[str]:
    """Formats what is trained on what, and how, as lines of the summary. The config may have been edited."""
    own = f' (the detector itself starts from {detector.checkpoint})' if detector.checkpoint else ''
    skipped = f', {statistics.num_skipped} unreadable ones skipped' if statistics.num_skipped else ''
    optimizer = cfg.optim_wrapper.optimizer
    length = ', '.join(f'{value} {key.removeprefix("max_")}' for key, value in cfg.train_cfg.items() if 'max_' in key)
    return [
        f'detector        {detector.title} ({detector.reference})',
        f'images          {statistics.num_images} of {_shown(Path(request.images))}{skipped}',
        f'initial weights {request.weights or f"random{own}"}',
        f'pre-training    {length}, batch size {cfg.train_dataloader.batch_size}, {optimizer.type} with learning rate '
        f'{optimizer.lr:g}, objects from levels of stride {", ".join(map(str, cfg.model.object_pool.strides))}',
        f'config          {_shown(Path(cfg.filename))}',
    ]


def _estimate(
    cfg: Config, store: ProposalStore, sample: Sample | None, num_images: int, num_processes: int
) -> list[str]:
    """Measures one training step, and formats what would run and for how long."""
    lines = ['would run']
    if sample is not None:
        seconds = sample.seconds_per_image * math.ceil(num_images / num_processes)
        lines.append(
            f'  proposals     {format_duration(seconds)} with {num_processes} processes, '
            f'{sample.seconds_per_image:.2f} s per image'
        )
    newest = find_newest(cfg.work_dir) if earlier_checkpoints(cfg.work_dir) else None
    if newest is not None and _is_finished(cfg, newest[1]):
        return [*lines, f'  pre-training  nothing, {newest[0]} is finished']
    steps = cfg.train_cfg.get('max_iters') or cfg.train_cfg.max_epochs * (num_images // cfg.train_dataloader.batch_size)
    remaining = steps - (newest[1].get('iter', 0) if newest else 0)
    print_log('measuring a training step', logger='current')
    step = time_step(cfg, store)
    duration = format_duration(step.estimate(remaining, cfg.train_dataloader.num_workers))
    lines.append(
        f'  pre-training  {duration}, {remaining} steps of {step.step:.2f} s on {get_device()} and {step.loading:.2f} '
        'CPU s to load the images'
    )
    return lines


def _is_finished(cfg: Config, meta: Mapping[str, Any]) -> bool:
    """Returns whether a checkpoint is the last of a training."""
    if 'max_iters' in cfg.train_cfg:
        return meta.get('iter', 0) >= cfg.train_cfg.max_iters
    return meta.get('epoch', 0) >= cfg.train_cfg.max_epochs


def _train(cfg: Config) -> str:
    """Trains, or continues an interrupted training; returns the last checkpoint."""
    resume = 'auto' if earlier_checkpoints(cfg.work_dir) else None
    newest = find_newest(cfg.work_dir) if resume else None
    if newest is not None and _is_finished(cfg, newest[1]):
        print_log(f'pre-training: {_shown(Path(newest[0]))} is finished', logger='current')
        return newest[0]
    print_log(f'pre-training: {_shown(Path(cfg.work_dir))}', logger='current')
    with claim_work_dir(cfg, resume):
        launch.set_resume(cfg, resume)
        launch.train(cfg)
    newest = find_newest(cfg.work_dir)
    if newest is None:
        raise InputError(f'the pre-training saved no checkpoint in {cfg.work_dir}: set default_hooks.checkpoint')
    return newest[0]


def _export(checkpoint: str, weights: Path) -> None:
    """Writes backbone and neck of a checkpoint, unless the file is newer."""
    if weights.exists() and weights.stat().st_mtime_ns >= Path(checkpoint).stat().st_mtime_ns:
        print_log(f'weights: {_shown(weights)} is finished', logger='current')
        return
    print_log(convert(checkpoint, 'ccop', weights), logger='current')


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _shown(path: Path) -> str:
    """Returns a path relative to the current folder if it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
