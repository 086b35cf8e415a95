"""Replays a training step whose loss was not finite, and finds the images and the module where that begins."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement, InstanceData
from mmengine.utils import import_modules_from_strings
from mmselfsup.registry import MODELS
from torch import Tensor, nn

from ccop_mm import boxes as box_ops
from ccop_mm.engine.step_dump import read_dump
from ccop_mm.errors import InputError
from ccop_mm.models.momentum import MomentumEncoder

#: Scopes in which a dump's config may name registered parts.
SCOPES = ('mmengine', 'mmcv', 'mmcls', 'mmdet', 'mmselfsup')

#: Packages that a dump may ask to import. Importing a module runs it, and a dump may come from anyone.
PACKAGES = ('ccop_mm', *SCOPES)


@dataclasses.dataclass
class Outcome:
    """What one forward pass gave.

    Attributes:
        losses (dict[str, float]): By name, their sum ``loss`` included.
        source (str | None): The first module, in time, that made a value that is not finite of finite ones: its name
            and type, and whether its weights are at fault.
    """

    losses: dict[str, float]
    source: str | None

    @property
    def faults(self) -> set[str]:
        """Names of the losses that are not finite."""
        return {name for name, value in self.losses.items() if not math.isfinite(value)}

    def __str__(self) -> str:
        values = ', '.join(f'{name} {value:.6g}' for name, value in self.losses.items())
        return f'{values}; it begins in {self.source}' if self.source else values


@dataclasses.dataclass
class ImageOutcome:
    """What one image gave, alone.

    Attributes:
        img_id (int | None): From the dump.
        img_path (str | None): From the dump.
        notes (list[str]): What is wrong with the image's own input.
        outcome (Outcome): Of the image as a batch of one.
    """

    img_id: int | None
    img_path: str | None
    notes: list[str]
    outcome: Outcome


@dataclasses.dataclass
class Report:
    """What a replay found; ``str()`` of it is for the reader.

    Attributes:
        title (str): Which step.
        recorded (dict[str, float]): The run's losses.
        notes (list[str]): What holds for the whole step, such as weights that are not finite.
        batch (Outcome): Of the whole batch.
        images (list[ImageOutcome]): Of each image.
    """

    title: str
    recorded: dict[str, float]
    notes: list[str]
    batch: Outcome
    images: list[ImageOutcome]

    @property
    def reproduced(self) -> bool:
        """Whether a loss that was not finite in the run is not finite again."""
        return bool(self.batch.faults & Outcome(self.recorded, None).faults)

    @property
    def culprits(self) -> list[ImageOutcome]:
        """The images of which one alone is enough."""
        return [image for image in self.images if image.outcome.faults]

    def __str__(self) -> str:
        lines = [self.title, f'the run:     {Outcome(self.recorded, None)}', f'its replay:  {self.batch}', *self.notes]
        for image in self.images:
            notes = ''.join(f'; {note}' for note in image.notes)
            lines.append(f'image {image.img_id} ({image.img_path}) alone: {image.outcome}{notes}')
        return '\n'.join([*lines, self._conclusion()])

    def _conclusion(self) -> str:
        if not self.reproduced:
            return (
                "not reproduced: it takes another rank's images, the run's own device, or what the config does not tell"
            )
        ids = ', '.join(str(image.img_id) for image in self.culprits)
        if not ids:
            return 'reproduced by the batch as a whole, by none of its images alone'
        if len(self.culprits) == len(self.images):
            return 'reproduced, by every image alone: the fault is in the model or its settings, not in an image'
        return f'reproduced, alone by: {ids}'


def replay(path: str | Path, device: str | None = None, imports: Sequence[str] = ()) -> Report:
    """Runs the step's forward pass again, in one process: the whole batch, then every image as a batch of one.

    The whole batch repeats the run to the last bit where the arithmetic does (one process, CPU, equal thread counts).
    Of several ranks' steps it repeats this rank's part: the key encoder's batches are composed of this rank's images
    alone, and Eq. 7's noise is that of rank 0. An image alone has its own batch statistics and draws.

    Args:
        path (str | Path): What :class:`ccop_mm.engine.finite_loss_hook.FiniteLossHook` wrote.
        device (str, optional): Such as ``'cpu'``; the run's kind of device where there is one by default.
        imports (Sequence[str]): Modules of the user's own that the run's ``custom_imports`` names and that may be
            imported; those of :data:`PACKAGES` may be without being named.

    Raises:
        InputError: The dump cannot be read, its config is of parts that are not registered here, or it asks for an
            import that was not named.
    """
    dump = read_dump(path)
    if device is None:
        device = dump['device'] if dump['device'] == 'cpu' or torch.cuda.is_available() else 'cpu'
    model = _build(dump['config'], imports).to(device)
    notes = []
    spoiled = [name for name, value in model.named_parameters() if not _finite(dump['state'][name])]
    if spoiled:
        notes.append(
            f'{len(spoiled)} weights were not finite before the step (first {spoiled[0]}): an earlier step or what was '
            'loaded is at fault, not this batch'
        )
    images = [
        ImageOutcome(
            **image,
            notes=_input_notes(single := _single(dump['batch'], index, len(dump['images']))),
            outcome=_run(model, dump, single),
        )
        for index, image in enumerate(dump['images'])
    ]
    title = f'{path}: iteration {dump["iteration"]} of {dump["max_iters"]}, rank {dump["rank"]} of {dump["world_size"]}'
    return Report(title, dump['losses'], notes, _run(model, dump, dump['batch']), images)


def _build(config: dict, imports: Sequence[str]) -> nn.Module:
    """The model of a dump's config, which chooses among registered parts and cannot name any other function."""
    if not isinstance(config.get('model'), dict):
        raise InputError('the run had no config of its model, so this dump cannot be replayed')
    _check_types(config['model'], 'model')
    _check_types(config.get('data_preprocessor'), 'data_preprocessor')
    _import_parts(config.get('custom_imports') or {}, imports)
    config = Config(config)
    scope = config.get('default_scope') or 'mmselfsup'
    if scope not in SCOPES:  # mmengine imports a scope's package
        raise InputError(f'default_scope={scope!r} is not one of {", ".join(SCOPES)}: this dump is not replayed')
    init_default_scope(scope)
    # As mmengine's Runner does: a preprocessor may stand beside the model.
    if config.get('data_preprocessor') is not None:
        config.model.setdefault('data_preprocessor', config.data_preprocessor)
    model = MODELS.build(config.model)
    for module in model.modules():
        if isinstance(module, MomentumEncoder):
            module.momentum = 1.0  # the state holds it as the step had already moved it on
    return model.train()


def _import_parts(custom_imports: dict, allowed: Sequence[str]) -> None:
    """Imports the modules that the run registered parts from: this family's, and those that the user has named."""
    names = custom_imports.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    strangers = [name for name in names if name.partition('.')[0] not in PACKAGES and name not in allowed]
    if strangers:
        raise InputError(
            f'the run imported {", ".join(strangers)}, and importing a module runs it; if you trust what bears that '
            f'name here, add {" ".join(f"--import {name}" for name in strangers)}'
        )
    try:
        import_modules_from_strings(names, custom_imports.get('allow_failed_imports', False))
    except ImportError as error:
        raise InputError(f'the run imported what cannot be imported here: {error}') from error


def _check_types(node, where: str) -> None:
    """mmengine imports and calls whatever a dotted ``type`` names; here it may name ``scope.Name`` alone."""
    if isinstance(node, dict):
        scope, dot, _ = str(node.get('type', '')).rpartition('.')
        if (dot and scope not in SCOPES) or node.get('_scope_', SCOPES[0]) not in SCOPES:
            name = node['type'] if dot and scope not in SCOPES else f'{node["_scope_"]}.{node.get("type")}'
            raise InputError(f'{where}.type={name!r} is not a registered part: this dump is not replayed')
        for key, value in node.items():
            _check_types(value, f'{where}.{key}')
    elif isinstance(node, (list, tuple)):
        for value in node:
            _check_types(value, where)


@torch.no_grad()
def _run(model: nn.Module, dump: dict, batch: dict) -> Outcome:
    """The forward pass of a training step, from the dump's state and random numbers."""
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
    """Notes, in order of time, the modules that make values that are not finite of finite ones; innermost first."""
    sources, sound, names = [], {}, {module: name for name, module in model.named_modules()}

    def before(module, args, kwargs):
        sound[module] = _finite((args, kwargs))

    def after(module, args, kwargs, output):
        if sound[module] and not _finite(output):
            weights = '' if _finite(list(module.parameters())) else ', whose weights are not finite'
            sources.append(f'{names[module] or "the model itself"} ({type(module).__name__}{weights})')

    handles = []
    for module in names:
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield sources
    finally:
        for handle in handles:
            handle.remove()


def _finite(value) -> bool:
    """Whether all floating-point numbers in tensors, containers, data elements and dataclasses are finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, BaseDataElement):
        value = dict(value.items())
    elif dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    return not isinstance(value, Sequence) or isinstance(value, str) or all(map(_finite, value))


def _single(value, index: int, count: int):
    """One image of a batch of ``count``: rows of tensors, entries of lists of anything but tensors and lists."""
    if isinstance(value, Tensor):
        return value[index : index + 1]
    if isinstance(value, dict):
        return {key: _single(item, index, count) for key, item in value.items()}
    if isinstance(value[0], (Tensor, list, tuple)):
        return [_single(item, index, count) for item in value]
    return [value[index]]


def _input_notes(batch: dict) -> list[str]:
    """What is wrong with a batch of one: pixels and boxes that are not finite, boxes without area in the view."""
    notes = []
    for number, view in enumerate(batch['inputs']):
        if not _finite(view):
            notes.append(f'view {number}: {int((~view.isfinite()).sum())} of {view.numel()} values are not finite')
    boxes = dict(getattr(batch['data_samples'][0], 'pseudo_label', InstanceData()).items())
    for name, rows in boxes.items():
        if name.startswith('boxes') and len(rows):
            area = box_ops.area(box_ops.clip(rows, batch['inputs'][0].shape[-2:]))
            bad = int((~(area > 0)).sum())
            if bad:
                notes.append(f'{name}: {bad} of {len(rows)} boxes have no area in the view')
    return notes
