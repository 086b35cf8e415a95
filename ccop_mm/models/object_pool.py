"""RoIAlign of object boxes, each on the pyramid level that matches its size."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmcv.ops import RoIAlign
from torch import Tensor, nn

from ccop_mm.utils import boxes as box_ops


@dataclass
class RoIs:
    """Boxes sorted by pyramid level, ready for pooling.

    Attributes:
        rows (Tensor): ``(M, 5)``: image index and xyxy box, sorted by level.
        order (Tensor): ``(M,)`` long: index of each sorted box before sorting.
        counts (list[int]): Number of boxes per level.
    """

    rows: Tensor
    order: Tensor
    counts: list[int]

    def split(self, size: int) -> list['RoIs']:
        """Splits into parts of at most ``size`` boxes; without boxes the result is one empty part."""
        parts = []
        for start in range(0, max(len(self.rows), 1), size):
            stop, counts, level_start = min(start + size, len(self.rows)), [], 0
            for count in self.counts:
                level_stop = level_start + count  # the boxes of this level are rows level_start to level_stop
                counts.append(max(min(level_stop, stop) - max(level_start, start), 0))
                level_start = level_stop
            parts.append(RoIs(self.rows[start:stop], self.order[start:stop], counts))
        return parts


#: Default of ``level_sides`` divided by the stride: the rule of the reference implementation.
SIDE_PER_STRIDE = 12


class ObjectPool(nn.Module):
    """RoIAlign of all boxes of a batch with one call per pyramid level.

    On a GPU ``layers``, mmcv's ``RoIAlign``, are called. On a CPU :func:`roi_align_on_cpu` computes the same result.

    Args:
        strides (tuple[int, ...]): Stride of each level in pixels, ascending; P2 to P5 by default.
        level_sides (tuple[float, ...], optional): Maximum box size, sqrt(area) in pixels, of every level except the
            last; 12 times its stride by default. The paper only states that levels are assigned by size; 48, 96 and 192
            for strides of 4, 8 and 16 are the thresholds of the reference implementation.
        output_size (int): Number of bins per side. The paper uses 7.
    """

    def __init__(
        self,
        strides: tuple[int, ...] = (4, 8, 16, 32),
        level_sides: tuple[float, ...] | None = None,
        output_size: int = 7,
    ) -> None:
        super().__init__()
        if list(strides) != sorted(set(strides)) or not strides:
            raise ValueError(f'strides must be ascending, got {strides}')
        if level_sides is None:
            level_sides = tuple(SIDE_PER_STRIDE * stride for stride in strides[:-1])
        if len(level_sides) != len(strides) - 1 or sorted(level_sides) != list(level_sides):
            raise ValueError(
                f'level_sides must contain {len(strides) - 1} ascending values for {len(strides)} levels, '
                f'got {level_sides}'
            )
        self.output_size = output_size
        self.level_sides = tuple(float(side) for side in level_sides)
        # sampling_ratio=0: one sample per covered cell. aligned=True: no half-pixel shift, as in detectron2 and mmdet.
        self.layers = nn.ModuleList(
            RoIAlign(output_size, spatial_scale=1 / stride, sampling_ratio=0, aligned=True) for stride in strides
        )

    def levels(self, boxes: Tensor) -> Tensor:
        """Assigns boxes to pyramid levels; a size equal to a threshold belongs to the finer level.

        Args:
            boxes (Tensor): ``(M, 4)`` in pixels of the network input.

        Returns:
            Tensor: ``(M,)`` long, level indices.
        """
        return torch.bucketize(box_ops.area(boxes).sqrt(), boxes.new_tensor(self.level_sides))

    def plan(self, boxes: Tensor, batch_index: Tensor) -> RoIs:
        """Sorts boxes by level. On a GPU this would synchronize, because the counts per level are needed on the host.

        Args:
            boxes (Tensor): ``(M, 4)`` in pixels of the network input, on the CPU. M may be 0.
            batch_index (Tensor): ``(M,)``, image of each box.

        Returns:
            RoIs: The sorted boxes.
        """
        levels = self.levels(boxes)
        order = levels.argsort(stable=True)
        rows = torch.cat([batch_index[:, None].to(boxes), boxes], dim=1)[order]
        return RoIs(rows, order, torch.bincount(levels, minlength=len(self.layers)).tolist())

    def forward(self, pyramid: tuple[Tensor, ...], rois: RoIs) -> Tensor:
        """Pools every box from its level.

        Levels without boxes contribute an empty tensor, which keeps their parameters in the autograd graph. Otherwise
        distributed training would hang waiting for their gradients.

        Args:
            pyramid (tuple[Tensor, ...]): One feature map ``(B, C, H, W)`` per level.
            rois (RoIs): Result of :meth:`plan`, moved to the device of the pyramid.

        Returns:
            Tensor: ``(M, C, 7, 7)`` in **sorted** order: row r belongs to box ``rois.order[r]``. Callers reorder the
            embeddings of 128 values instead of these features of ``C * 49`` values.
        """
        pyramid = self.prepare_pyramid(pyramid)
        parts = rois.rows.to(pyramid[0].dtype).split(rois.counts)
        with torch.autocast(pyramid[0].device.type, enabled=False):
            pooled = [
                self._pool(layer, features, part) if len(part) else self._empty(features)
                for layer, features, part in zip(self.layers, pyramid, parts, strict=True)
            ]
        return torch.cat(pooled)

    @staticmethod
    def prepare_pyramid(pyramid: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Converts features to the dtype and memory format that RoIAlign requires.

        Call it before pooling from the same pyramid several times, so that :meth:`forward` does not convert again.

        The dtype is at least float32: mmcv's kernels do not support bfloat16, and half precision would shift boxes by
        up to one pixel. The memory format is contiguous on a GPU, because mmcv's kernels ignore strides, and
        channels-last on a CPU, as required by :func:`roi_align_on_cpu`.

        Args:
            pyramid (tuple[Tensor, ...]): One feature map ``(B, C, H, W)`` per level.

        Returns:
            tuple[Tensor, ...]: The converted feature maps.
        """
        dtype = torch.promote_types(pyramid[0].dtype, torch.float32)
        layout = torch.channels_last if pyramid[0].device.type == 'cpu' else torch.contiguous_format
        return tuple(features.to(dtype).contiguous(memory_format=layout) for features in pyramid)

    def _pool(self, layer: RoIAlign, features: Tensor, rois: Tensor) -> Tensor:
        """Pools at least one box from one level: ``(M, C, 7, 7)``."""
        if features.device.type == 'cpu':
            return roi_align_on_cpu(features, rois, self.output_size, layer.spatial_scale)
        return layer(features, rois)

    def _empty(self, features: Tensor) -> Tensor:
        """Returns ``(0, C, 7, 7)`` connected to the graph of one level; mmcv's CUDA kernel fails without boxes."""
        return features[:0, :, :1, :1].expand(-1, -1, self.output_size, self.output_size)


def roi_align_on_cpu(features: Tensor, rois: Tensor, output_size: int, spatial_scale: float) -> Tensor:
    """Computes ``mmcv.ops.roi_align`` with average pooling, ``sampling_ratio=0`` and ``aligned=True`` on a CPU.

    Each output value is a weighted sum of cells of the feature map. The function therefore computes the index and the
    weight of every tap (a cell read by a bin) and sums them in one ``embedding_bag`` over rows of channels, which torch
    vectorizes and parallelizes, unlike mmcv's kernel. The temporary memory is about 100 bytes per tap: each of the
    ``M * output_size^2`` bins has 4 taps per covered cell, and at least 4.

    Args:
        features (Tensor): ``(B, C, H, W)`` float32 or float64 on the CPU. Channels-last features are not copied.
        rois (Tensor): ``(M, 5)`` of the same dtype: image index and xyxy box in pixels of the network input.
        output_size (int): Number of bins per side.
        spatial_scale (float): Feature map cells per pixel.

    Returns:
        Tensor: ``(M, C, output_size, output_size)``, differentiable with respect to ``features``. It is 0 for boxes
        that are empty or inverted (the latter fail an assertion in mmcv).
    """
    _, channels, height, width = features.shape
    begin = rois[:, 1:3] * spatial_scale - 0.5  # aligned: the coordinates of a cell are those of its center
    sides = (rois[:, 3:] - rois[:, 1:3]).clamp(min=0) * spatial_scale
    index_x, weight_x, taps_x = _axis_taps(begin[:, 0], sides[:, 0], output_size, width)
    index_y, weight_y, taps_y = _axis_taps(begin[:, 1], sides[:, 1], output_size, height)

    # Position of the first tap of each bin on both axes: (M,) -> (M, S) -> (M, S, S) -> (M * S * S,)
    bins = torch.arange(output_size)
    first_x = (output_size * taps_x).cumsum(0)[:, None] + (bins - output_size) * taps_x[:, None]
    first_y = (output_size * taps_y).cumsum(0)[:, None] + (bins - output_size) * taps_y[:, None]
    shape = len(rois), output_size, output_size
    first_x, first_y = first_x[:, None].expand(shape).flatten(), first_y[:, :, None].expand(shape).flatten()
    # Number of taps of each bin along x and in total, and the total before each bin.
    columns = taps_x[:, None, None].expand(shape).flatten()
    counts = (taps_x * taps_y)[:, None, None].expand(shape).flatten()
    offsets = counts.cumsum(0) - counts

    # Bin of each tap, and row and column of the tap within it.
    tap_bin = torch.repeat_interleave(counts)
    number = torch.arange(len(tap_bin)) - offsets[tap_bin]
    row = number // columns[tap_bin]
    tap_x, tap_y = first_x[tap_bin] + number - row * columns[tap_bin], first_y[tap_bin] + row

    image = rois[:, 0].long().repeat_interleave(output_size**2)
    index = (image[tap_bin] * height + index_y[tap_y]) * width + index_x[tap_x]
    weight = weight_y[tap_y] * weight_x[tap_x]
    cells = features.permute(0, 2, 3, 1).reshape(-1, channels)  # (B, C, H, W) -> (B * H * W, C)
    pooled = F.embedding_bag(index, cells, offsets, mode='sum', per_sample_weights=weight)
    return pooled.view(*shape, channels).permute(0, 3, 1, 2)


def _axis_taps(start: Tensor, side: Tensor, output_size: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the taps of each box along one axis: two per bilinear sample.

    Args:
        start (Tensor): ``(M,)``, start of each box in cells; the center of the first cell is 0.
        side (Tensor): ``(M,)``, length of each box in cells, at least 0.
        output_size (int): Number of bins along the axis.
        size (int): Number of cells along the axis.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Cell index ``(A,)`` and weight ``(A,)`` of each tap, ordered by box and bin;
        number of taps per bin of each box ``(M,)``.
    """
    samples = (side / output_size).ceil().long()  # sampling_ratio=0: one sample per covered cell
    per_box = samples * output_size
    box = torch.repeat_interleave(per_box)
    number = torch.arange(len(box)) - (per_box.cumsum(0) - per_box)[box]
    # The samples of a box are equidistant: all bins contain the same number, and the margin is half a spacing.
    position = start[box] + (number + 0.5) * (side / per_box)[box]
    outside = (position < -1) | (position > size)
    position = position.clamp(0, size - 1)
    low = position.floor()
    index = torch.stack([low, (low + 1).clamp(max=size - 1)], dim=1).long()
    weight = torch.stack([1 - (position - low), position - low], dim=1) / samples[box, None]
    return index.flatten(), weight.masked_fill_(outside[:, None], 0).flatten(), 2 * samples
