"""Replays a training step whose loss was non-finite, and finds the images and the module that cause it."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement, InstanceData
from mmengine.utils import import_modules_from_strings
from mmselfsup.registry import MODELS
from torch import Tensor, nn

from ccop_mm.debug.step_dump import read_dump
from ccop_mm.models.momentum import MomentumEncoder
from ccop_mm.utils import boxes as box_ops
from ccop_mm.utils.errors import InputError

#: Registry scopes that the config of a dump may use.
SCOPES = ('mmengine', 'mmcv', 'mmcls', 'mmdet', 'mmselfsup')

#: Packages that a dump may import. An import executes code, and a dump may come from an untrusted source.
PACKAGES = ('ccop_mm', *SCOPES)


@dataclasses.dataclass
class Outcome:
    """Result of one forward pass.

    Attributes:
        losses (dict[str, float]): Losses by name, including their sum ``loss``.
        source (str | None): First module in execution order that computed non-finite values from finite inputs: its
            name and type, and whether its weights are non-finite.
    """

    losses: dict[str, float]
    source: str | None

    @property
    def non_finite_losses(self) -> set[str]:
        """Names of the non-finite losses."""
        return {name for name, value in self.losses.items() if not math.isfinite(value)}

    def __str__(self) -> str:
        values = ', '.join(f'{name} {value:.6g}' for name, value in self.losses.items())
        return f'{values}; first non-finite output: {self.source}' if self.source else values


@dataclasses.dataclass
class ImageOutcome:
    """Result of one image as a batch of one.

    Attributes:
        img_id (int | None): Image id in the dump.
        img_path (str | None): Image path in the dump.
        notes (list[str]): Problems in the image's input.
        outcome (Outcome): Result of the forward pass.
    """

    img_id: int | None
    img_path: str | None
    notes: list[str]
    outcome: Outcome


@dataclasses.dataclass
class Report:
    """Result of a replay. ``str()`` formats it for the terminal.

    Attributes:
        title (str): File, iteration and rank.
        recorded (dict[str, float]): Losses of the run.
        notes (list[str]): Problems of the whole step, such as non-finite weights.
        batch (Outcome): Result of the whole batch.
        images (list[ImageOutcome]): Result of each image.
    """

    title: str
    recorded: dict[str, float]
    notes: list[str]
    batch: Outcome
    images: list[ImageOutcome]

    @property
    def reproduced(self) -> bool:
        """Whether a loss that was non-finite in the run is non-finite in the replay."""
        return bool(self.batch.non_finite_losses & Outcome(self.recorded, None).non_finite_losses)

    @property
    def failing_images(self) -> list[ImageOutcome]:
        """Images with a non-finite loss as a batch of one."""
        return [image for image in self.images if image.outcome.non_finite_losses]

    def __str__(self) -> str:
        lines = [self.title, f'run:    {Outcome(self.recorded, None)}', f'replay: {self.batch}', *self.notes]
        for image in self.images:
            notes = ''.join(f'; {note}' for note in image.notes)
            lines.append(f'image {image.img_id} ({image.img_path}) alone: {image.outcome}{notes}')
        return '\n'.join([*lines, self._conclusion()])

    def _conclusion(self) -> str:
        if not self.reproduced:
            return (
                'not reproduced: the cause may be in the images of another rank, the device of the run, or a setting '
                'that is not part of the config'
            )
        ids = ', '.join(str(image.img_id) for image in self.failing_images)
        if not ids:
            return 'reproduced by the whole batch, but by none of its images alone'
        if len(self.failing_images) == len(self.images):
            return 'reproduced by every image alone: the cause is in the model or its settings, not in an image'
        return f'reproduced by these images alone: {ids}'


def replay(path: str | Path, device: str | None = None, imports: Sequence[str] = ()) -> Report:
    """Repeats the forward pass of a dumped training step in one process: the whole batch, then each image alone.

    The whole batch reproduces the run bit by bit on deterministic hardware (one process, CPU, same number of threads).
    With several ranks, only the part of this rank is repeated: the key encoder's batches contain only its images, and
    the noise of Eq. 7 is that of rank 0. An image alone has its own batch statistics and random numbers.

    Args:
        path (str | Path): File written by :class:`ccop_mm.debug.finite_loss_hook.FiniteLossHook`.
        device (str, optional): Device, such as ``'cpu'``. Defaults to the device type of the run if it is available.
        imports (Sequence[str]): User modules in the run's ``custom_imports`` that may be imported. Modules of
            :data:`PACKAGES` are always allowed.

    Raises:
        InputError: The dump cannot be read, its config uses modules that are not registered, or it requires an import
            that is not allowed.
    """
    dump = read_dump(path)
    if device is None:
        device = dump['device'] if dump['device'] == 'cpu' or torch.cuda.is_available() else 'cpu'
    model = _build_model(dump['config'], imports).to(device)
    notes = []
    non_finite = [name for name, _ in model.named_parameters() if not _is_finite(dump['state'][name])]
    if non_finite:
        notes.append(
            f'{len(non_finite)} weights were non-finite before the step (first: {non_finite[0]}): the cause is an '
            'earlier step or the loaded checkpoint, not this batch'
        )
    images = [
        ImageOutcome(
            **image,
            notes=_input_notes(single := _select_image(dump['batch'], index)),
            outcome=_forward(model, dump, single),
        )
        for index, image in enumerate(dump['images'])
    ]
    title = f'{path}: iteration {dump["iteration"]} of {dump["max_iters"]}, rank {dump["rank"]} of {dump["world_size"]}'
    return Report(title, dump['losses'], notes, _forward(model, dump, dump['batch']), images)


def _build_model(config: dict, imports: Sequence[str]) -> nn.Module:
    """Builds the model of a dump's config, restricted to registered modules."""
    if not isinstance(config.get('model'), dict):
        raise InputError('the dump cannot be replayed: the config of the run contains no model')
    _check_types(config['model'], 'model')
    _check_types(config.get('data_preprocessor'), 'data_preprocessor')
    _import_modules(config.get('custom_imports') or {}, imports)
    cfg = Config(config)
    scope = cfg.get('default_scope') or 'mmselfsup'
    if scope not in SCOPES:  # mmengine imports the package of the scope
        raise InputError(f'the dump cannot be replayed: default_scope={scope!r} is not one of {", ".join(SCOPES)}')
    init_default_scope(scope)
    # As in mmengine's Runner: a preprocessor may be defined outside the model.
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(cfg.model)
    for module in model.modules():
        if isinstance(module, MomentumEncoder):
            module.momentum = 1.0  # the dumped state is the one after the update of the step
    return model.train()


def _import_modules(custom_imports: dict, allowed: Sequence[str]) -> None:
    """Imports the modules in which the run registered classes, if they are in :data:`PACKAGES` or ``allowed``."""
    names = custom_imports.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in names if name.partition('.')[0] not in PACKAGES and name not in allowed]
    if unknown:
        raise InputError(
            f'the run imported {", ".join(unknown)}, and an import executes code; if you trust these modules, add '
            f'{" ".join(f"--import {name}" for name in unknown)}'
        )
    try:
        import_modules_from_strings(names, custom_imports.get('allow_failed_imports', False))
    except ImportError as error:
        raise InputError(f'a module that the run imported cannot be imported: {error}') from error


def _check_types(node: Any, path: str) -> None:
    """Checks that every ``type`` in a config is a registered name, because mmengine imports and calls dotted names.

    Args:
        node (Any): Config, or part of it.
        path (str): Position of ``node``, for the error message.
    """
    if isinstance(node, dict):
        scope, dot, _ = str(node.get('type', '')).rpartition('.')
        if (dot and scope not in SCOPES) or node.get('_scope_', SCOPES[0]) not in SCOPES:
            name = node['type'] if dot and scope not in SCOPES else f'{node["_scope_"]}.{node.get("type")}'
            raise InputError(f'the dump cannot be replayed: {path}.type={name!r} is not a registered module')
        for key, value in node.items():
            _check_types(value, f'{path}.{key}')
    elif isinstance(node, (list, tuple)):
        for value in node:
            _check_types(value, path)


@torch.no_grad()
def _forward(model: Any, dump: dict, batch: dict) -> Outcome:
    """Runs the forward pass of a training step with the model state and generator states of the dump."""
    device = next(model.parameters()).device.type
    autocast = getattr(torch, dump['autocast'].removeprefix('torch.')) if dump['autocast'] else None
    model.load_state_dict(dump['state'])
    if dump['progress'] is not None:
        model.box_jitter.progress = dump['progress']
    with (
        torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == 'cuda' else []),
        torch.autocast(device, dtype=autocast, enabled=autocast is not None),
        _watch(model) as sources,
    ):
        torch.manual_seed(dump['initial_seed'])
        torch.set_rng_state(dump['rng_state'])
        if device == 'cuda' and dump['cuda_rng_state'] is not None:
            torch.cuda.set_rng_state(dump['cuda_rng_state'])
        losses = model(**model.data_preprocessor(batch, True), mode='loss')
    _, values = model.parse_losses(losses)
    return Outcome(
        {name: value.item() for name, value in values.items() if 'loss' in name}, sources[0] if sources else None
    )


@contextlib.contextmanager
def _watch(model: nn.Module) -> Iterator[list[str]]:
    """Collects the modules that compute non-finite outputs from finite inputs, in execution order, innermost first."""
    sources: list[str] = []
    finite_input: dict[nn.Module, bool] = {}
    names = {module: name for name, module in model.named_modules()}

    def before_forward(module: nn.Module, args: tuple, kwargs: dict) -> None:
        finite_input[module] = _is_finite((args, kwargs))

    def after_forward(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if finite_input[module] and not _is_finite(output):
            weights = '' if _is_finite(list(module.parameters())) else ', non-finite weights'
            sources.append(f'{names[module] or "model"} ({type(module).__name__}{weights})')

    handles = []
    for module in names:
        handles.append(module.register_forward_pre_hook(before_forward, with_kwargs=True))
        handles.append(module.register_forward_hook(after_forward, with_kwargs=True))
    try:
        yield sources
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(value: Any) -> bool:
    """Returns whether all floating-point tensors in a nested structure are finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, BaseDataElement):
        value = dict(value.items())
    elif dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    return not isinstance(value, Sequence) or isinstance(value, str) or all(map(_is_finite, value))


def _select_image(value: Any, index: int) -> Any:
    """Selects one image of a batch: a row of each tensor, an element of each list of data samples."""
    if isinstance(value, Tensor):
        return value[index : index + 1]
    if isinstance(value, dict):
        return {key: _select_image(item, index) for key, item in value.items()}
    if isinstance(value[0], (Tensor, list, tuple)):
        return [_select_image(item, index) for item in value]
    return [value[index]]


def _input_notes(batch: dict) -> list[str]:
    """Describes problems in a batch of one image: non-finite pixels, and boxes with no area inside the view."""
    notes = []
    for number, view in enumerate(batch['inputs']):
        if not _is_finite(view):
            notes.append(f'view {number}: {int((~view.isfinite()).sum())} of {view.numel()} values are non-finite')
    boxes = dict(getattr(batch['data_samples'][0], 'pseudo_label', InstanceData()).items())
    for name, rows in boxes.items():
        if name.startswith('boxes') and len(rows):
            area = box_ops.area(box_ops.clip(rows, batch['inputs'][0].shape[-2:]))
            num_empty = int((~(area > 0)).sum())
            if num_empty:
                notes.append(f'{name}: {num_empty} of {len(rows)} boxes have no area in the view')
    return notes
