"""One call from a detector and images without labels to pre-trained weights and a fine-tuning config."""

import contextlib
import hashlib
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from torch.nn.modules.batchnorm import _BatchNorm

from ccop_mm.engine import launch
from ccop_mm.engine.work_dir import earlier_checkpoints
from ccop_mm.models.encoder_layout import EncoderLayout
from ccop_mm.preflight import Report
from ccop_mm.preflight.config import check_options
from ccop_mm.pretrain.checks import check_pretraining, check_replaced_options
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
from ccop_mm.pretrain.estimate import ImageStatistics, Sample, inspect_images, measure_store, sample_images, time_step
from ccop_mm.pretrain.output_folder import FINETUNE, PRETRAIN, OutputFolder, Request, claim_folder, resolve_output
from ccop_mm.pretrain.sizes import MIN_BATCH, choose_batch_size, choose_sizes, choose_view_size
from ccop_mm.proposals.runner.run import generate_proposals
from ccop_mm.proposals.store import ProposalStore, load_proposals
from ccop_mm.utils.commands import tool_command
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import ImageFile, ImageList, list_images
from ccop_mm.utils.text import format_duration, single_line
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
        checkpoint (str | None): Last checkpoint; None if nothing was trained (dry run, several GPUs).
        weights (Path | None): File with backbone and neck alone; None if nothing was trained.
        lines (tuple[str, ...]): Lines of the summary.
    """

    pretrain_config: Path
    finetune_config: Path
    checkpoint: str | None
    weights: Path | None
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return '\n'.join(self.lines)


@dataclass(frozen=True)
class Job:
    """What is trained on what.

    Args:
        detector (Detector): The detector.
        encoder (Encoder): Its backbone and neck.
        layout (EncoderLayout): Their layout.
        request (Request): Arguments of the call.
        init_cfg (dict | None): Initializer of the model; None for random weights.
        images (ImageSource): Images.
        num_loaders (int): Processes of the data loader.
    """

    detector: Detector
    encoder: Encoder
    layout: EncoderLayout
    request: Request
    init_cfg: dict[str, Any] | None
    images: ImageSource
    num_loaders: int


@dataclass(frozen=True)
class Choice:
    """The chosen settings.

    Args:
        settings (dict): The pre-training config.
        text (str): The same as the content of a file.
        lines (list[str]): One line per choice to report.
    """

    settings: dict[str, Any]
    text: str
    lines: list[str]


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
    weights_prefix: str | None = None,
    num_gpus: int = 1,
) -> PretrainResult:
    """Pre-trains the backbone and the neck of a detector on images without labels.

    See :func:`ccop_mm.apis.pretrain` for the arguments and errors.
    """
    _check_arguments(epochs, view_size=view_size, batch_size=batch_size, workers=workers, num_gpus=num_gpus)
    check_replaced_options(options or {})
    folder = resolve_output(out)
    with claim_folder(folder):
        # Everything that can be wrong is checked before the search for proposals, which may take hours.
        detector = read_detector(detector_config)
        encoder, layout = build_encoder(detector)
        init_cfg = _initializer(detector, weights, weights_prefix)
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
            weights_prefix=weights_prefix,
            num_gpus=num_gpus,
        )
        output = OutputFolder(folder, request)
        if init_cfg is not None and not output.has_checkpoint:
            _check_weights(init_cfg, encoder)
        num_loaders = min(_num_cores(), MAX_LOADERS) if workers is None else workers
        job = Job(detector, encoder, layout, request, init_cfg, _image_source(request, image_list), num_loaders)
        if not (folder / PROPOSALS).exists():
            expected = inspect_images(image_list, job.images.folder, NUM_PROPOSALS)
            is_kept = output.keeps(PRETRAIN)
            cfg = _load(output) if is_kept else Config(_choose(job, expected, is_final=False).settings)
            check_pretraining(cfg, with_weights=not output.has_checkpoint)
        store, sample = _propose(folder / PROPOSALS, image_list, workers, progress, dry_run)
        statistics = measure_store(store, NUM_PROPOSALS) if sample is None else sample.statistics
        choice = _choose(job, statistics)
        is_kept = output.keeps(PRETRAIN)
        cfg = _load(output) if is_kept else Config(choice.settings)
        check_pretraining(cfg, with_weights=not output.has_checkpoint)
        if PRETRAIN in output.write(choice.text, format_finetuning(detector)):
            for line in choice.lines:
                print_log(line, logger='current')
        cfg = _load(output)
        lines = _describe(detector, statistics, request, cfg)
        if dry_run:
            lines += _estimate(cfg, store, sample, statistics.num_images, workers or _num_cores(), num_gpus)
            return PretrainResult(folder / PRETRAIN, folder / FINETUNE, None, None, tuple(lines))
        if num_gpus > 1 and not _find_finished(cfg):
            lines.append(f'pre-train       {_distributed_command(folder / PRETRAIN, num_gpus)}')
            lines.append('then            repeat this command, which writes the weights')
            return PretrainResult(folder / PRETRAIN, folder / FINETUNE, None, None, tuple(lines))
        checkpoint = _train(cfg)
        _export(checkpoint, folder / WEIGHTS)
        command = [*tool_command('train.py'), _shown(folder / FINETUNE), '--work-dir', _shown(folder / 'finetune')]
        lines += [
            f'checkpoint      {_shown(Path(checkpoint))}',
            f'weights         {_shown(folder / WEIGHTS)}',
            f'fine-tune       {shlex.join(command)}',
        ]
        return PretrainResult(folder / PRETRAIN, folder / FINETUNE, checkpoint, folder / WEIGHTS, tuple(lines))


def _check_arguments(epochs: int | str, **numbers: int | None) -> None:
    for name, value in {**numbers, 'epochs': None if epochs == 'auto' else epochs}.items():
        minimum = MIN_BATCH if name == 'batch_size' else 1
        is_valid = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
        if value is not None and not is_valid:
            suffix = {'epochs': ", or 'auto'", 'batch_size': ', one image per group of batch statistics'}.get(name, '')
            raise InputError(f'{name} must be a number of at least {minimum}{suffix}, got {value!r}')


def _initializer(detector: Detector, weights: str | Path | None, prefix: str | None) -> dict[str, Any] | None:
    """Returns the config of the initializer for the initial weights; None for random ones.

    Raises:
        InputError: There is a prefix but no weights, or the detector's config names no weights.
    """
    if weights is None:
        if prefix is not None:
            raise InputError(f'weights_prefix={prefix!r} requires weights: pass them, too')
        return None
    if weights == OWN_WEIGHTS:
        if detector.checkpoint is None:
            raise InputError(
                f'the backbone of {detector.reference} has no init_cfg with a checkpoint: pass a file as weights'
            )
        weights, prefix = detector.checkpoint, detector.checkpoint_prefix if prefix is None else prefix
    checkpoint = str(weights) if '://' in str(weights) else os.path.abspath(os.path.expanduser(weights))
    return dict(type='EncoderPretrained', checkpoint=checkpoint, **({} if prefix is None else dict(prefix=prefix)))


def _check_weights(init_cfg: Mapping[str, Any], encoder: Encoder) -> None:
    """Loads the initial weights; raises :class:`InputError` if they do not fit."""
    try:
        EncoderPretrained(init_cfg['checkpoint'], init_cfg.get('prefix'))(encoder)
    except InputError as error:
        # The argument of the initializer is an option of tools/pretrain.py.
        raise InputError(str(error).replace("prefix='", "--weights-prefix '")) from None


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
    store = load_proposals(file)
    if not len(store):
        file.unlink()  # the images may be corrected
        raise InputError(f'all {len(images)} images are unreadable: check {images[0].path} and the others')
    return store, None


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


def _choose(job: Job, statistics: ImageStatistics, is_final: bool = True) -> Choice:
    """Chooses the sizes and the settings that depend on the images.

    Args:
        job (Job): What is trained.
        statistics (ImageStatistics): Statistics of the images.
        is_final (bool): Whether warnings are logged; False for a check before the proposals are known.

    Raises:
        InputError: The images, the sizes or the options do not fit each other.
    """
    detector, request = job.detector, job.request
    divisor = detector.data_preprocessor.get('pad_size_divisor', 1)
    view_size, note = choose_view_size(request.view_size, statistics.short_sides, job.layout, divisor)
    check_view(job.encoder, view_size)
    is_gpu = get_device() == 'cuda'
    memory = torch.cuda.get_device_properties(0).total_memory if is_gpu else None
    batch_size = choose_batch_size(request.batch_size, statistics.num_images, memory, request.num_gpus)
    sizes = choose_sizes(
        statistics.num_images,
        statistics.mean_proposals,
        batch_size * request.num_gpus,
        None if isinstance(request.epochs, str) else request.epochs,
        continued=job.init_cfg is not None,
        batch_norm=any(isinstance(module, _BatchNorm) for module in job.encoder.backbone.modules()),
    )
    settings = pretraining_settings(
        detector, job.layout, sizes, view_size, job.images, job.init_cfg, job.num_loaders, is_gpu, request.num_gpus
    )
    if request.options:
        settings = _apply_options(settings, request.options, is_final)
    notes = [note] if note else []
    text = format_pretraining(settings, detector, sizes, notes, request.options, request.num_gpus)
    before = ' (before --cfg-options)' if request.options else ''
    return Choice(settings, text, [*map(str, detector.changes), *notes, f'sizes{before}: {sizes}'])


def _image_source(request: Request, images: ImageList) -> ImageSource:
    """Returns where the dataset finds the images: the names of a list are relative to a folder, or absolute."""
    source = request.images
    if os.path.isdir(source):
        return ImageSource(source)
    if request.image_root is not None:
        return ImageSource(request.image_root, source)
    relative = next((image for image in images if not os.path.isabs(image.file_name)), None)
    if relative is None:
        return ImageSource(os.path.dirname(source), source)
    depth = len(Path(relative.file_name).parts)
    return ImageSource(str(relative.path.parents[depth - 1]), source)


def _apply_options(settings: dict[str, Any], options: dict[str, Any], log: bool = True) -> dict[str, Any]:
    cfg, report = Config(settings), Report()
    check_options(cfg, options, report)
    if log:
        report.log()
    report.raise_errors()
    cfg.merge_from_dict(options)
    return cfg.to_dict()


def _load(output: OutputFolder) -> Config:
    """Reads the pre-training config of an output folder, which may have been edited."""
    return launch.load_config(output.path / PRETRAIN, output.work_dir)


def _describe(detector: Detector, statistics: ImageStatistics, request: Request, cfg: Config) -> list[str]:
    """Formats what is trained on what, and how, as lines of the summary. The config may have been edited."""
    own = f' (the detector itself starts from {detector.checkpoint})' if detector.checkpoint else ''
    skipped = f', {statistics.num_skipped} unreadable ones skipped' if statistics.num_skipped else ''
    optimizer = cfg.optim_wrapper.get('optimizer') or {}
    length = ', '.join(f'{value} {key.removeprefix("max_")}' for key, value in cfg.train_cfg.items() if 'max_' in key)
    processes = f' on each of {request.num_gpus} GPUs' if request.num_gpus > 1 else ''
    rate = f' with learning rate {optimizer["lr"]:g}' if isinstance(optimizer.get('lr'), (int, float)) else ''
    strides = (cfg.model.get('object_pool') or {}).get('strides')
    levels = f', objects from levels of stride {", ".join(map(str, strides))}' if strides else ''
    return [
        f'detector        {detector.title} ({detector.reference})',
        f'images          {statistics.num_images} of {_shown(Path(request.images))}{skipped}',
        f'initial weights {request.weights or f"random{own}"}',
        f'pre-training    {length}, batch size {_batch_size(cfg)}{processes}, {optimizer.get("type")}{rate}{levels}',
        f'config          {_shown(Path(cfg.filename))}',
    ]


def _batch_size(cfg: Config) -> int:
    return cfg.train_dataloader.get('batch_size', 1)


def _estimate(
    cfg: Config, store: ProposalStore, sample: Sample | None, num_images: int, num_processes: int, num_gpus: int
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
    steps = cfg.train_cfg.get('max_iters') or cfg.train_cfg.max_epochs * (num_images // (_batch_size(cfg) * num_gpus))
    remaining = steps - (newest[1].get('iter', 0) if newest else 0)
    print_log('measuring a training step', logger='current')
    with _single_line_errors(cfg):
        step = time_step(cfg, store)
    duration = format_duration(step.estimate(remaining, cfg.train_dataloader.get('num_workers', 0)))
    lines.append(
        f'  pre-training  {duration}, {remaining} steps of {step.step:.2f} s on {get_device()} and {step.loading:.2f} '
        'CPU s to load the images'
    )
    return lines


def _is_finished(cfg: Config, meta: Mapping[str, Any]) -> bool:
    """Returns whether a checkpoint is the last of a training."""
    if cfg.train_cfg.get('max_iters'):
        return meta.get('iter', 0) >= cfg.train_cfg.max_iters
    return meta.get('epoch', 0) >= cfg.train_cfg.max_epochs


def _find_finished(cfg: Config) -> str | None:
    """Returns the last checkpoint of a finished training; None if it is not finished."""
    newest = find_newest(cfg.work_dir) if earlier_checkpoints(cfg.work_dir) else None
    return newest[0] if newest is not None and _is_finished(cfg, newest[1]) else None


@contextlib.contextmanager
def _single_line_errors(cfg: Config) -> Iterator[None]:
    """Replaces errors of a training step that the user can resolve by an :class:`InputError`."""
    try:
        yield
    except InputError:
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise InputError(
            f'a batch of {_batch_size(cfg)} images does not fit into the memory of the GPU: pass a smaller --batch-size'
        ) from error
    except (AssertionError, AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f'a training step of {cfg.filename} fails with {type(error).__name__}: {single_line(error)}; correct the '
            'config or the --cfg-options, or pass --debug for the traceback'
        ) from error


def _distributed_command(config: Path, num_gpus: int) -> str:
    return shlex.join([*tool_command('dist_train.sh'), _shown(config), str(num_gpus), '--resume'])


def _train(cfg: Config) -> str:
    """Trains, or continues an interrupted training; returns the last checkpoint."""
    resume = 'auto' if earlier_checkpoints(cfg.work_dir) else None
    finished = _find_finished(cfg)
    if finished is not None:
        print_log(f'pre-training: {_shown(Path(finished))} is finished', logger='current')
        return finished
    print_log(f'pre-training: {_shown(Path(cfg.work_dir))}', logger='current')
    with claim_folder(cfg.work_dir, resume):
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
