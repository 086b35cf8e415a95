"""Layout of an encoder: strides and channels of the feature maps of any backbone and neck, and what they depend on."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import single_line

#: Side of the image of the dry run in pixels: one cell of a map of stride 128, the coarsest of mmdet's necks (P7).
IMAGE_SIZE = 128
#: A level is pooled if its stride is at most this fraction of the side of a view: a map of at least 5 x 5 cells.
MAX_STRIDE_FRACTION = 1 / 5
#: Coarsest stride that is pooled if the size of the views is not known: that of the paper's P5.
MAX_STRIDE = 32
#: Channels after the projections of a neck's levels with different numbers of channels: those of the paper's FPN.
PROJECTED_CHANNELS = 256


@dataclass(frozen=True)
class EncoderLayout:
    """Feature maps of a backbone and a neck.

    Attributes:
        strides (tuple[int, ...]): Stride of each output of the neck in pixels, in the order of the neck.
        channels (tuple[int, ...]): Channels of each output of the neck.
        image_channels (int): Channels of the last output of the backbone.
    """

    strides: tuple[int, ...]
    channels: tuple[int, ...]
    image_channels: int

    def pooled_strides(self, view_size: int | None = None) -> tuple[int, ...]:
        """Returns the strides of the levels from which objects are pooled, ascending.

        Args:
            view_size (int, optional): Side of the views in pixels. Levels with fewer than 5 x 5 cells are not pooled;
                without a size, levels coarser than stride 32 are not.

        Raises:
            InputError: No level is fine enough.
        """
        limit = MAX_STRIDE if view_size is None else view_size * MAX_STRIDE_FRACTION
        pooled = tuple(sorted({stride for stride in self.strides if stride <= limit}))
        if not pooled:
            raise InputError(
                f'the finest level of the neck has stride {min(self.strides)}, of which a view of {view_size} px has '
                f'fewer than 5 x 5 cells: use views of at least {round(min(self.strides) / MAX_STRIDE_FRACTION)} px'
            )
        return pooled

    def level_channels(self, strides: Sequence[int]) -> tuple[int, ...]:
        """Returns the channels of the levels with the given strides.

        Raises:
            InputError: The neck has no level of one of the strides.
        """
        missing = [stride for stride in strides if stride not in self.strides]
        if missing:
            raise InputError(
                f'object_pool.strides contains {missing[0]}, but the neck returns maps of stride '
                f'{", ".join(map(str, self.strides))}'
            )
        return tuple(self.channels[self.strides.index(stride)] for stride in strides)

    def object_channels(self, strides: Sequence[int]) -> int:
        """Returns the channels of a pooled object: the number of the levels, or 256 if their numbers differ."""
        channels = set(self.level_channels(strides))
        return channels.pop() if len(channels) == 1 else PROJECTED_CHANNELS


def inspect_encoder(backbone: nn.Module, neck: nn.Module) -> EncoderLayout:
    """Finds the layout of an encoder by a forward pass of a small image in evaluation mode.

    Args:
        backbone (nn.Module): Returns a list of maps ``(B, C, H, W)``.
        neck (nn.Module): Maps this list to another.

    Returns:
        EncoderLayout: Strides and channels.

    Raises:
        InputError: The encoder cannot process the image, does not return several maps, or has a level whose size is not
            the image's divided by an integer.
    """
    with dry_run(backbone, neck), torch.no_grad():
        features, pyramid = _forward(backbone, neck)
    return _describe(features, pyramid)


def find_untrained(backbone: nn.Module, neck: nn.Module, strides: Sequence[int]) -> tuple[str, ...]:
    """Finds the tensors that influence neither a pooled level nor the last map of the backbone.

    They are the convolutions of levels such as P6 and P7, and parts of a backbone that its outputs do not depend on.

    Args:
        backbone (nn.Module): See :func:`inspect_encoder`.
        neck (nn.Module): See :func:`inspect_encoder`.
        strides (Sequence[int]): Strides of the pooled levels.

    Returns:
        tuple[str, ...]: Keys of the parameters, and of the buffers of modules with such parameters only, with the
        prefixes ``backbone.`` and ``neck.``.
    """
    parts = nn.ModuleDict(dict(backbone=backbone, neck=neck))
    parameters = dict(parts.named_parameters())
    frozen = [value.requires_grad for value in parameters.values()]
    try:
        with dry_run(backbone, neck), torch.enable_grad():
            parts.requires_grad_(True)
            features, pyramid = _forward(backbone, neck)
            layout = _describe(features, pyramid)
            used = [pyramid[layout.strides.index(stride)] for stride in strides] + [features[-1]]
            sum(level.float().sum() for level in used).backward()
        untrained = {name for name, value in parameters.items() if value.grad is None}
    finally:
        for value, requires_grad in zip(parameters.values(), frozen, strict=True):
            value.grad = None
            value.requires_grad_(requires_grad)
    buffers = []
    for prefix, module in parts.named_modules():
        own = [f'{prefix}.{name}' for name, _ in module.named_parameters(recurse=False)]
        if own and untrained.issuperset(own):
            buffers += [f'{prefix}.{name}' for name, _ in module.named_buffers(recurse=False)]
    return (*(name for name in parameters if name in untrained), *buffers)


@contextlib.contextmanager
def dry_run(*modules: nn.Module) -> Iterator[None]:
    """Puts modules into evaluation mode; afterwards, each submodule returns to its previous mode.

    Random number generators and running statistics are not changed.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


def _forward(backbone: nn.Module, neck: nn.Module) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Returns the outputs of backbone and neck for an image of zeros."""
    parameter = next(backbone.parameters())
    image = parameter.new_zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    try:
        features = backbone(image)
        pyramid = neck(tuple(features)) if isinstance(features, (list, tuple)) else None
    except Exception as error:
        raise InputError(
            f'{type(backbone).__name__} and {type(neck).__name__} cannot process an image of {IMAGE_SIZE} x '
            f'{IMAGE_SIZE} px: {type(error).__name__}: {single_line(error)}'
        ) from error
    if not _are_maps(features):
        raise InputError(f'{type(backbone).__name__} does not return a list of maps (B, C, H, W)')
    if not _are_maps(pyramid):
        raise InputError(f'{type(neck).__name__} does not return a list of maps (B, C, H, W)')
    return features, pyramid  # type: ignore[return-value]


def _are_maps(value: object) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(part, Tensor) and part.ndim == 4 for part in value)
    )


def _describe(features: Sequence[Tensor], pyramid: Sequence[Tensor]) -> EncoderLayout:
    if len(pyramid) < 2:
        raise InputError('the neck returns one level; objects of different sizes need at least two')
    sizes = [tuple(level.shape[-2:]) for level in pyramid]
    for number, (height, width) in enumerate(sizes):
        if height != width or IMAGE_SIZE % width:
            raise InputError(
                f'output {number} of the neck has {height} x {width} cells for an image of {IMAGE_SIZE} px: '
                'levels without an integer stride cannot be pooled'
            )
    return EncoderLayout(
        strides=tuple(IMAGE_SIZE // width for _, width in sizes),
        channels=tuple(level.shape[1] for level in pyramid),
        image_channels=features[-1].shape[1],
    )
