"""Feature maps of a frozen network on all images of a dataset, cached in memory for the frozen-detector probe."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmselfsup.models.utils import SelfSupDataPreprocessor
from torch import Tensor, nn

from ccop_mm.evaluation.feature_maps import feature_maps
from ccop_mm.evaluation.frozen_detector_data import DetectionImage
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import single_line

#: Sources of feature maps -> letter of the level names.
SOURCES = {'backbone': 'C', 'neck': 'P'}
#: Strides that a detection head reads: C3 to C5, or P3 to P5.
STRIDES = (8, 16, 32)
#: Height and width of the network input are padded to multiples of this, like the input of most detectors.
SIZE_DIVISOR = 32
#: Side of the image of the dry run in pixels.
DRY_RUN_SIZE = 256
#: Number of images whose features give the mean and standard deviation of each channel.
NUM_STATISTICS_IMAGES = 256
#: Largest absolute value of a standardized feature, within the range of float16.
MAX_FEATURE = 6e4


@dataclass(frozen=True)
class Level:
    """A feature map that the head reads.

    Attributes:
        name (str): Name such as C3 or P5: the number is the binary logarithm of the stride.
        index (int): Position among the maps of the backbone or the neck.
        stride (int): Stride in pixels.
        channels (int): Number of channels.
    """

    name: str
    index: int
    stride: int
    channels: int


class FrozenNetwork:
    """Data preprocessor and backbone of a model, with or without its neck, as the fixed part of a detector.

    Levels are found by a dry run, so every backbone and neck that return feature maps can be used. The model should be
    in eval mode, without gradients.

    Args:
        model (nn.Module): Model with ``data_preprocessor`` and ``backbone``, such as :class:`ccop_mm.models.CCOP`,
            mmselfsup's MoCo or an mmdet detector; ``source='neck'`` requires ``neck``.
        source (str): ``'backbone'`` or ``'neck'``: the part whose outputs are the feature maps. All stages of a ResNet
            can be used, whatever its ``out_indices`` are.
        strides (Sequence[int]): Strides of the levels to use, as far as the source has them.

    Raises:
        InputError: The model lacks a part, a part returns no feature maps, or no level has one of the strides.

    Attributes:
        levels (list[Level]): Levels from fine to coarse.
    """

    def __init__(self, model: nn.Module, source: str = 'backbone', strides: Sequence[int] = STRIDES) -> None:
        if source not in SOURCES:
            raise InputError(f'features must be {" or ".join(map(repr, SOURCES))}, got {source!r}')
        for part in dict.fromkeys(('data_preprocessor', 'backbone', source)):
            if getattr(model, part, None) is None:
                raise InputError(f'{type(model).__name__} has no {part}, which the frozen detector reads')
        self.model, self.source = model, source
        self.device = next(iter([*model.parameters(), *model.buffers()])).device
        self.levels = self._find_levels(strides)

    def _find_levels(self, strides: Sequence[int]) -> list[Level]:
        batch = torch.zeros(1, 3, DRY_RUN_SIZE, DRY_RUN_SIZE, device=self.device)
        owner = f'the {self.source} of {type(self.model).__name__}'
        try:
            maps = self._maps(batch)
        except Exception as error:
            raise InputError(
                f'{owner} cannot process an image of {DRY_RUN_SIZE} x {DRY_RUN_SIZE} px: {type(error).__name__}: '
                f'{single_line(error)}'
            ) from error
        if not all(isinstance(part, Tensor) and part.ndim == 4 for part in maps):
            raise InputError(f'{owner} returns no feature maps (B, C, H, W); use the features of the backbone')
        found = [(index, DRY_RUN_SIZE / part.shape[3], part.shape[1]) for index, part in enumerate(maps)]
        levels = [
            Level(f'{SOURCES[self.source]}{math.log2(stride):g}', index, int(stride), channels)
            for index, stride, channels in found
            if stride in strides
        ]
        if not levels or len({level.stride for level in levels}) < len(levels):
            available = ', '.join(f'{stride:g}' for _, stride, _ in found)
            raise InputError(
                f'{owner} has feature maps of stride {available}; the frozen detector needs one map for at least one '
                f'of the strides {", ".join(map(str, strides))}'
            )
        return sorted(levels, key=lambda level: level.stride)

    def padded_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rounds a height and a width up to multiples of 32."""
        height, width = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in shape)
        return height, width

    def map_shapes(self, shape: tuple[int, int]) -> list[tuple[int, int]]:
        """Returns height and width of the map of each level for an image of a padded shape."""
        return [(-(-shape[0] // level.stride), -(-shape[1] // level.stride)) for level in self.levels]

    def preprocess(self, image: np.ndarray) -> Tensor:
        """Prepares an image (h, w, 3) uint8 BGR with the data preprocessor of the model and pads it: ``(3, H, W)``."""
        preprocessor = self.model.data_preprocessor
        # A mirrored image is a view with a negative stride, which torch does not accept.
        tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        if isinstance(preprocessor, SelfSupDataPreprocessor):  # expects a list of views, a batch each
            prepared = preprocessor(dict(inputs=[tensor[None]], data_samples=None))
            prepared = prepared['inputs'] if isinstance(prepared, dict) else prepared[0]
            output = prepared[0][0]
        else:  # of a detector: expects a list of images
            output = preprocessor(dict(inputs=[tensor], data_samples=None))['inputs'][0]
        height, width = self.padded_shape(image.shape[:2])
        output = output[:, :height, :width].float()  # a preprocessor may pad to multiples of its own
        value = getattr(preprocessor, 'pad_value', 0)
        return F.pad(output, (0, width - output.shape[2], 0, height - output.shape[1]), value=value)

    def __call__(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        """Computes the feature maps of B images, (h, w, 3) uint8 BGR each, that have one padded shape.

        Returns:
            list[Tensor]: ``(B, C, H, W)`` float32 for each level.
        """
        maps = self._maps(torch.stack([self.preprocess(image) for image in images]))
        return [maps[level.index].float() for level in self.levels]

    def _maps(self, batch: Tensor) -> Sequence[Any]:
        if self.source == 'backbone':
            # Without the neck of the model, which would be computed, too.
            return list(feature_maps(SimpleNamespace(backbone=self.model.backbone), batch).values())
        return self.model.neck(self.model.backbone(batch))


@dataclass
class Bucket:
    """Cached features of the images of one padded shape.

    Attributes:
        images (list[DetectionImage]): N images.
        maps (list[Tensor]): ``(N, views, C, H, W)`` float16 on the CPU for each level. View 1 is the mirrored image.
    """

    images: list[DetectionImage]
    maps: list[Tensor]


@dataclass
class FeatureCache:
    """Standardized features of a dataset.

    Attributes:
        size (int): Short side of the resized images in pixels.
        levels (list[Level]): Levels from fine to coarse.
        buckets (list[Bucket]): Images by padded shape.
    """

    size: int
    levels: list[Level]
    buckets: list[Bucket]

    @property
    def images(self) -> list[DetectionImage]:
        """All images, in the order of the buckets."""
        return [image for bucket in self.buckets for image in bucket.images]

    @property
    def num_bytes(self) -> int:
        """Memory of the features in bytes."""
        return sum(part.numel() * part.element_size() for bucket in self.buckets for part in bucket.maps)


def count_bytes(network: FrozenNetwork, images: Sequence[DetectionImage], size: int, flip: bool = False) -> int:
    """Computes the memory that :func:`cache_features` needs for the features of ``images``, in bytes."""
    total = 0
    for image in images:
        shapes = network.map_shapes(network.padded_shape(image.resized_shape(size)))
        total += sum(level.channels * math.prod(shape) for level, shape in zip(network.levels, shapes, strict=True))
    return total * (1 + flip) * torch.finfo(torch.float16).bits // 8


def measure_statistics(
    network: FrozenNetwork, images: Sequence[DetectionImage], size: int, batch_size: int = 32
) -> list[tuple[Tensor, Tensor]]:
    """Computes the mean and the standard deviation of each channel over the cells of up to 256 images.

    The images are distributed evenly over ``images``. Cells of the padding do not count.

    Args:
        network (FrozenNetwork): Network.
        images (Sequence[DetectionImage]): Images; those that cannot be read are skipped.
        size (int): Short side of the images in pixels.
        batch_size (int): Images per batch.

    Returns:
        list[tuple[Tensor, Tensor]]: For each level ``(C,)`` float32 means and standard deviations on the CPU. The
        standard deviation of a constant channel is 1.

    Raises:
        InputError: No image can be read, or a feature is not finite.
    """
    rows = np.unique(np.linspace(0, len(images) - 1, NUM_STATISTICS_IMAGES).astype(int))
    chosen = [images[row] for row in rows]
    sums = [torch.zeros(2, level.channels, dtype=torch.float64) for level in network.levels]
    counts = [0] * len(network.levels)
    for _, batch, maps in _batched_maps(network, chosen, size, batch_size):
        for row, image in enumerate(batch):
            for number, (height, width) in enumerate(network.map_shapes(image.resized_shape(size))):
                cells = maps[number][row, :, :height, :width].flatten(1).double()
                sums[number] += torch.stack([cells.sum(dim=1), cells.square().sum(dim=1)]).cpu()
                counts[number] += height * width
    if not all(counts):
        raise InputError(f'none of {len(chosen)} images could be read, for example {chosen[0].annotated.path}')
    statistics = []
    for level, (total, squares), count in zip(network.levels, sums, counts, strict=True):
        _check_finite(squares, level)
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        # The differences of a constant channel are rounding errors, which must not be amplified.
        std = torch.where(std > 1e-4 * mean.abs() + 1e-12, std, torch.ones_like(std))
        statistics.append((mean.float(), std.float()))
    return statistics


def cache_features(
    network: FrozenNetwork,
    images: Sequence[DetectionImage],
    size: int,
    statistics: Sequence[tuple[Tensor, Tensor]],
    flip: bool = False,
    batch_size: int = 32,
) -> FeatureCache:
    """Computes the feature maps of all images, standardizes each channel, and stores them in float16 on the CPU.

    Images are resized to a short side of ``size`` and a long side of at most twice that, prepared by the model's data
    preprocessor, and padded to multiples of 32. Images that cannot be read are left out, after a log message.

    Args:
        network (FrozenNetwork): Network.
        images (Sequence[DetectionImage]): Images.
        size (int): Short side of the images in pixels.
        statistics (Sequence[tuple[Tensor, Tensor]]): Result of :func:`measure_statistics` on the training images.
        flip (bool): Whether to cache the mirrored images, too.
        batch_size (int): Images per batch.

    Returns:
        FeatureCache: The features.

    Raises:
        InputError: No image can be read, or a feature is not finite.
    """
    scales = [[part.to(network.device)[:, None, None] for part in pair] for pair in statistics]
    groups: dict[tuple[int, int], list[DetectionImage]] = defaultdict(list)
    for image in images:
        groups[network.padded_shape(image.resized_shape(size))].append(image)
    buckets = []
    for shape, group in groups.items():
        maps = [
            torch.empty(len(group), 1 + flip, level.channels, *map_shape, dtype=torch.float16)
            for level, map_shape in zip(network.levels, network.map_shapes(shape), strict=True)
        ]
        loaded: list[DetectionImage] = []
        for view, batch, computed in _batched_maps(network, group, size, batch_size, flip):
            loaded += batch if view == 0 else []
            rows = slice(len(loaded) - len(batch), len(loaded))
            for level, cached, part, (mean, std) in zip(network.levels, maps, computed, scales, strict=True):
                _check_finite(part, level)
                cached[rows, view] = ((part - mean) / std).clamp(-MAX_FEATURE, MAX_FEATURE).half().cpu()
        if loaded:
            buckets.append(Bucket(loaded, [part[: len(loaded)] for part in maps]))
    cache = FeatureCache(size, network.levels, buckets)
    num_skipped = len(images) - len(cache.images)
    if num_skipped == len(images):
        raise InputError(f'none of {len(images)} images could be read, for example {images[0].annotated.path}')
    if num_skipped:
        print_log(f'{num_skipped} of {len(images)} images skipped', 'current', logging.WARNING)
    return cache


def _check_finite(features: Tensor, level: Level) -> None:
    if not features.isfinite().all():
        raise InputError(f'frozen detector: features of {level.name} are non-finite; use an earlier checkpoint')


def _batched_maps(
    network: FrozenNetwork, images: Sequence[DetectionImage], size: int, batch_size: int, flip: bool = False
) -> Iterator[tuple[int, list[DetectionImage], list[Tensor]]]:
    """Yields view (1: mirrored), images and maps of batches of up to ``batch_size`` images with one padded shape."""
    pending: dict[tuple[int, int], list[tuple[DetectionImage, np.ndarray]]] = defaultdict(list)
    for image in images:
        pixels = image.load(size)
        if pixels is None:
            continue
        shape = network.padded_shape(image.resized_shape(size))
        pending[shape].append((image, pixels))
        if len(pending[shape]) == batch_size:
            yield from _compute_views(network, pending.pop(shape), flip)
    for batch in pending.values():
        yield from _compute_views(network, batch, flip)


def _compute_views(
    network: FrozenNetwork, batch: list[tuple[DetectionImage, np.ndarray]], flip: bool
) -> Iterator[tuple[int, list[DetectionImage], list[Tensor]]]:
    images = [image for image, _ in batch]
    for view in range(1 + flip):
        yield view, images, network([pixels[:, ::-1] if view else pixels for _, pixels in batch])
