"""Layout of an encoder: strides and channels of the feature maps of any backbone and neck, and what they depend on."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ccop_mm.utils.encoder_graph import IMAGE_SIZE, EncoderGraph
from ccop_mm.utils.errors import InputError

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

    Raises:
        InputError: The encoder cannot process the image, does not return several maps, or has a level whose size is not
            the image's divided by an integer.
    """
    return describe_layout(EncoderGraph(backbone, neck))


def describe_layout(graph: EncoderGraph) -> EncoderLayout:
    """Returns strides and channels of the outputs of an encoder.

    Raises:
        InputError: There is one level only, or a level without an integer stride.
    """
    if len(graph.pyramid) < 2:
        raise InputError('the neck returns one level; objects of different sizes need at least two')
    sizes = [tuple(level.shape[-2:]) for level in graph.pyramid]
    for number, (height, width) in enumerate(sizes):
        if height != width or IMAGE_SIZE % width:
            raise InputError(
                f'output {number} of the neck has {height} x {width} cells for an image of {IMAGE_SIZE} px: '
                'levels without an integer stride cannot be pooled'
            )
    return EncoderLayout(
        strides=tuple(IMAGE_SIZE // width for _, width in sizes),
        channels=tuple(level.shape[1] for level in graph.pyramid),
        image_channels=graph.features[-1].shape[1],
    )


def find_untrained(graph: EncoderGraph, strides: Sequence[int]) -> tuple[str, ...]:
    """Finds the tensors that influence neither a pooled level nor the last map of the backbone.

    They are the convolutions of levels such as P6 and P7, and parts of a backbone that its outputs do not depend on.

    Args:
        graph (EncoderGraph): Outputs of the encoder.
        strides (Sequence[int]): Strides of the pooled levels.

    Returns:
        tuple[str, ...]: Keys of parameters and buffers, with the prefixes ``backbone.`` and ``neck.``.
    """
    layout = describe_layout(graph)
    pooled = [graph.pyramid[layout.strides.index(stride)] for stride in strides]
    return graph.find_without_influence([*pooled, graph.features[-1]])
