"""Box-query pointing: is an object's feature of one view most like the same object in another? (paper, Figure 6)

The paper shows heat maps; this is their number. An object's feature is pooled in one view and compared with every cell
of the other view's map; a hit is a best cell that lies in the same object's box there.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.ops import roi_align
from torch import Tensor

from ccop_mm.errors import InputError
from ccop_mm.fileio import atomic_write


def box_similarity(query_maps: Tensor, key_maps: Tensor, boxes: Tensor, batch_index: Tensor, stride: int) -> Tensor:
    """Cosine similarity of a box's mean feature (RoIAlign 7x7) in one view with every cell of the other view.

    Args:
        query_maps (Tensor): ``(B, C, H, W)`` of the views that hold the boxes, float32 or better.
        key_maps (Tensor): ``(B, C, H', W')`` of the other views.
        boxes (Tensor): ``(N, 4)`` in pixels of the query views; N may be 0.
        batch_index (Tensor): ``(N,)``, the image of each box.
        stride (int): Pixels per cell.

    Returns:
        Tensor: ``(N, H', W')`` in [-1, 1]; a feature of norm zero has similarity 0.
    """
    if not len(boxes):  # mmcv's CUDA kernel cannot be launched for no box
        return key_maps.new_zeros(0, *key_maps.shape[-2:])
    rois = torch.cat([batch_index[:, None].to(boxes), boxes], dim=1).to(query_maps.dtype)
    pooled = roi_align(query_maps, rois, (7, 7), 1 / stride, 0, 'avg', True).mean(dim=(2, 3))  # (N, C, 7, 7) -> (N, C)
    query, keys = F.normalize(pooled, dim=1), F.normalize(key_maps, dim=1)
    # Map by map: the maps of every box side by side would be N / B times the memory.
    similarity = key_maps.new_zeros(len(boxes), *key_maps.shape[-2:])
    for index in range(len(keys)):
        mine = batch_index == index
        similarity[mine] = torch.einsum('nc,chw->nhw', query[mine], keys[index])
    return similarity


def cells_inside(boxes: Tensor, map_shape: tuple[int, int], view_shape: tuple[int, int], stride: int) -> Tensor:
    """Which cells have their center in a box: ``(N, H, W)`` bool.

    A cell covers ``stride`` pixels a side; of one that the view's edge cuts, the visible part's center counts.

    Args:
        boxes (Tensor): ``(N, 4)`` xyxy in pixels of the view.
        map_shape (tuple[int, int]): H and W.
        view_shape (tuple[int, int]): Height and width of the view in pixels.
        stride (int): Pixels per cell.
    """
    ys, xs = (
        (start + (start + stride).clamp(max=size)) / 2
        for start, size in zip((torch.arange(n).to(boxes) * stride for n in map_shape), view_shape, strict=True)
    )
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)  # each (N, 1)
    in_x, in_y = (x1 <= xs) & (xs < x2), (y1 <= ys) & (ys < y2)  # (N, W), (N, H)
    return in_y[:, :, None] & in_x[:, None, :]


def pointing_hits(similarity: Tensor, inside: Tensor) -> Tensor:
    """Whether each object's most similar cell lies in its box: ``(N,)`` float64 in [0, 1].

    Cells that tie for the maximum count for equal parts, so a map that is the same everywhere scores the box's share of
    the cells and not what the order of the cells happens to give.

    Args:
        similarity (Tensor): ``(N, H, W)``.
        inside (Tensor): ``(N, H, W)`` bool, from :func:`cells_inside`.

    Raises:
        InputError: If a similarity is not finite.
    """
    broken = int((~similarity.isfinite()).flatten(1).any(1).sum()) if len(similarity) else 0
    if broken:
        raise InputError(f'pointing: the features of {broken} of {len(similarity)} objects are not finite')
    if not len(similarity):
        return similarity.new_zeros(0, dtype=torch.float64)
    best = similarity == similarity.amax(dim=(1, 2), keepdim=True)
    return (best & inside).sum(dim=(1, 2)).double() / best.sum(dim=(1, 2))


@dataclass
class PointingResult:
    """What each query scored; an object may be asked for several times, in several pairs of views.

    Attributes:
        hits (dict[str, np.ndarray]): Per level ``(N,)`` in [0, 1]: 1 where the maximum lies in the box.
        share (np.ndarray): ``(N,)``, the box's share of the view, which a random point would score.
        center (np.ndarray): ``(N,)``, 1 where the box holds the view's center: what always pointing there would score.
        photo (np.ndarray): ``(N,)``, which photo a query is of. Queries of one photo are not independent.
        row (np.ndarray): ``(N,)``, which of its photo's objects.
    """

    hits: dict[str, np.ndarray] = field(default_factory=dict)
    share: np.ndarray = field(default_factory=lambda: np.zeros(0))
    center: np.ndarray = field(default_factory=lambda: np.zeros(0))
    photo: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    row: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def report(self, confidence: float = 0.95) -> dict[str, float]:
        """The numbers, flat, as a logger takes them: ``num_queries``, ``num_objects``, ``num_photos``; ``chance``,
        ``center`` and, for each level such as C4, ``C4`` with its confidence interval ``C4_low`` and ``C4_high``, all
        in [0, 1]."""
        report = {
            'num_queries': len(self.share),
            'num_objects': len(np.unique(np.stack([self.photo, self.row]), axis=1).T),
            'num_photos': len(np.unique(self.photo)),
            'chance': float(self.share.mean()),
            'center': float(self.center.mean()),
        }
        for level, hits in self.hits.items():
            low, high = bootstrap_interval(hits, self.photo, confidence)
            report.update({level: float(hits.mean()), f'{level}_low': low, f'{level}_high': high})
        return report

    def difference(self, other: 'PointingResult', level: str, confidence: float = 0.95) -> tuple[float, float, float]:
        """By how much this is better than another on the same objects, and the interval of that.

        Comparing object by object gives a far narrower interval than two intervals side by side.

        Raises:
            InputError: If the other is not of the same objects and views.
        """
        if not (np.array_equal(self.photo, other.photo) and np.allclose(self.share, other.share)):
            raise InputError('these pointing results are of different objects or views and cannot be compared')
        gain = self.hits[level] - other.hits[level]
        return float(gain.mean()), *bootstrap_interval(gain, self.photo, confidence)


def bootstrap_interval(
    values: np.ndarray, groups: np.ndarray, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, whole groups (photos) redrawn, since their members are not independent.

    Args:
        values (np.ndarray): ``(N,)``, N at least 1.
        groups (np.ndarray): ``(N,)``, which group each value belongs to.
        confidence (float): Probability that the interval should hold the true mean.
        draws (int): Resamples.
        seed (int): Of the resamples, so that one result has one interval.

    Returns:
        tuple[float, float]: Low and high.
    """
    members = np.unique(groups, return_inverse=True)[1]
    counts, sums = np.bincount(members), np.bincount(members, weights=values)
    # (draws, G): how often each group was drawn
    times = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=draws)
    means = (times @ sums) / (times @ counts)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def format_pointing_report(report: dict[str, float]) -> str:
    """A report as a table in per cent, for the terminal; no trailing newline."""
    lines = [
        f'box-query pointing in %, {report["num_queries"]} queries for {report["num_objects"]} objects of '
        f'{report["num_photos"]} photos',
        f'{"level":>9}{"accuracy":>10}{"95 % interval":>18}',
    ]
    for level in [key.removesuffix('_low') for key in report if key.endswith('_low')]:
        interval = f'{100 * report[f"{level}_low"]:.1f} to {100 * report[f"{level}_high"]:.1f}'
        lines.append(f'{level:>9}{100 * report[level]:>10.1f}{interval:>18}')
    lines.append(f"{'chance':>9}{100 * report['chance']:>10.1f}   (the box's share of the view)")
    lines.append(f"{'center':>9}{100 * report['center']:>10.1f}   (always pointing at the view's center)")
    return '\n'.join(lines)


def write_pointing_result(result: PointingResult, path: str | Path) -> None:
    """Writes the report and every object's hits as json, whole or not at all."""
    objects = {name: getattr(result, name).tolist() for name in ('share', 'center', 'photo', 'row')}
    objects['hits'] = {level: hits.tolist() for level, hits in result.hits.items()}
    with atomic_write(path, 'w') as file:
        json.dump({'report': result.report(), 'objects': objects}, file, indent=1)


def read_pointing_result(path: str | Path) -> PointingResult:
    """Reads what :func:`write_pointing_result` wrote.

    Raises:
        InputError: If the file is missing or another one.
    """
    try:
        objects = json.loads(Path(path).read_text(encoding='utf-8'))['objects']
        return PointingResult(
            hits={level: np.array(hits, np.float64) for level, hits in objects['hits'].items()},
            share=np.array(objects['share'], np.float64),
            center=np.array(objects['center'], np.float64),
            photo=np.array(objects['photo'], np.int64),
            row=np.array(objects['row'], np.int64),
        )
    except FileNotFoundError:
        raise InputError(f'{path}: no such file; tools/inspect/pointing.py --json writes one') from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f'{path}: not a pointing result ({type(error).__name__}: {error})') from None
