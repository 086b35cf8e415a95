"""Boxes to features: RoIAlign on the pyramid level that fits each box."""

from dataclasses import dataclass

import torch
from mmcv.ops import RoIAlign
from torch import Tensor, nn

from ccop_mm import boxes as box_ops
from ccop_mm.models.roi_align import roi_align_on_cpu


@dataclass
class RoIs:
    """Boxes sorted by pyramid level, ready for pooling.

    Attributes:
        rows (Tensor): ``(M, 5)``: image index and box, sorted by level.
        order (Tensor): ``(M,)`` long: the original row of each sorted one.
        counts (list[int]): Number of boxes on each level.
    """

    rows: Tensor
    order: Tensor
    counts: list[int]

    def split(self, size: int) -> list['RoIs']:
        """Parts of at most ``size`` boxes; one without boxes if there are none."""
        parts = []
        for start in range(0, max(len(self.rows), 1), size):
            stop, counts, begin = min(start + size, len(self.rows)), [], 0
            for count in self.counts:  # this level's boxes are rows begin to begin + count
                counts.append(max(min(begin + count, stop) - max(begin, start), 0))
                begin += count
            parts.append(RoIs(self.rows[start:stop], self.order[start:stop], counts))
        return parts


class ObjectPool(nn.Module):
    """RoIAlign 7x7 for all boxes of a batch, one call per pyramid level.

    ``layers`` are mmcv's; a CPU takes :func:`ccop_mm.models.roi_align.roi_align_on_cpu` in their place, which does what
    they are set to do.

    Args:
        strides (tuple[int, ...]): Pixels per cell of each level; P2 to P5 by default.
        level_sides (tuple[float, ...]): Largest box side, sqrt(area) in pixels, of every level but the last. The paper
            says "by size"; 48, 96 and 192 are the thresholds of the authors' code.
        output_size (int): Cells per side; the paper uses 7.
    """

    def __init__(
        self,
        strides: tuple[int, ...] = (4, 8, 16, 32),
        level_sides: tuple[float, ...] = (48, 96, 192),
        output_size: int = 7,
    ) -> None:
        super().__init__()
        if len(level_sides) != len(strides) - 1 or sorted(level_sides) != list(level_sides):
            raise ValueError(f'{len(strides)} levels need {len(strides) - 1} rising level_sides, got {level_sides}')
        self.output_size = output_size
        self.level_sides = tuple(float(side) for side in level_sides)
        # sampling_ratio=0: as many samples as the cell covers; aligned: no half-pixel shift (detectron2, mmdet).
        self.layers = nn.ModuleList(
            RoIAlign(output_size, spatial_scale=1 / stride, sampling_ratio=0, aligned=True) for stride in strides
        )

    def levels(self, boxes: Tensor) -> Tensor:
        """The level index of each box ``(M, 4)``; a side equal to a threshold belongs to the finer level: ``(M,)``."""
        return torch.bucketize(box_ops.area(boxes).sqrt(), boxes.new_tensor(self.level_sides))

    def plan(self, boxes: Tensor, batch_index: Tensor) -> RoIs:
        """Sorts boxes by level. Call it on the CPU: the number of boxes of each level must be known to the host.

        Args:
            boxes (Tensor): ``(M, 4)`` in pixels of the network's input; M may be 0.
            batch_index (Tensor): ``(M,)``, the image of each box.
        """
        levels = self.levels(boxes)
        order = levels.argsort(stable=True)
        rows = torch.cat([batch_index[:, None].to(boxes), boxes], dim=1)[order]
        return RoIs(rows, order, torch.bincount(levels, minlength=len(self.layers)).tolist())

    def forward(self, pyramid: tuple[Tensor, ...], rois: RoIs) -> Tensor:
        """Pools every box from its level.

        A level without boxes is pooled all the same: an empty result keeps its convolutions in the graph, so that
        distributed training does not wait for their gradients for ever.

        Args:
            pyramid (tuple[Tensor, ...]): Per level ``(B, C, H, W)``.
            rois (RoIs): From :meth:`plan`, on the pyramid's device.

        Returns:
            Tensor: ``(M, C, 7, 7)`` in the **sorted** order: row r belongs to box ``rois.order[r]``. (Putting
            embeddings of 128 numbers a box in order is cheaper than 12,544.)
        """
        pyramid = self.readable(pyramid)
        parts = rois.rows.to(pyramid[0].dtype).split(rois.counts)
        with torch.autocast(pyramid[0].device.type, enabled=False):
            pooled = [
                self._pool(layer, level, part) if len(part) else self._nothing(level)
                for layer, level, part in zip(self.layers, pyramid, parts, strict=True)
            ]
        return torch.cat(pooled)

    def _pool(self, layer: RoIAlign, level: Tensor, rois: Tensor) -> Tensor:
        """``(M, C, 7, 7)`` of one level."""
        if level.device.type == 'cpu':
            return roi_align_on_cpu(level, rois, self.output_size, layer.spatial_scale)
        return layer(level, rois)

    @staticmethod
    def readable(pyramid: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The features as RoIAlign takes them; call it first where one pyramid is pooled from several times.

        mmcv's kernels have no bfloat16, half precision moves boxes by up to a pixel (so: float32 or better), and they
        read memory as (B, C, H, W), whatever the strides say. On a CPU rows of channels are read.
        """
        dtype = torch.promote_types(pyramid[0].dtype, torch.float32)
        layout = torch.channels_last if pyramid[0].device.type == 'cpu' else torch.contiguous_format
        return tuple(level.to(dtype).contiguous(memory_format=layout) for level in pyramid)

    def _nothing(self, level: Tensor) -> Tensor:
        """``(0, C, 7, 7)`` of a level, in its graph. mmcv's CUDA kernel cannot be launched for no box."""
        return level[:0, :, :1, :1].expand(-1, -1, self.output_size, self.output_size)
