"""Pointing game accuracy of object features across two views: metric, confidence intervals and result files.

The pointing game (Zhang et al., *Top-down Neural Attention by Excitation Backprop*, ECCV 2016) counts how often the
maximum of a saliency map falls inside the annotated object. There the map is the attention of a classifier to a class.
Here the map is the cosine similarity of an object's feature, pooled in one view, with every cell of another view of the
same image (the heat maps of the paper's Figure 6), and a hit is a maximum inside the same object's box.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.ops import roi_align
from torch import Tensor

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write

#: Field of :class:`PointingResult` -> key in the result file.
FILE_KEYS = {
    'area_fraction': 'share',
    'center': 'center',
    'image_index': 'photo',
    'object_index': 'row',
}


def box_similarity(query_maps: Tensor, key_maps: Tensor, boxes: Tensor, batch_index: Tensor, stride: int) -> Tensor:
    """Computes the cosine similarity of each box's mean feature (7x7 RoIAlign) with every cell of the other view.

    Args:
        query_maps (Tensor): ``(B, C, H, W)`` feature maps of the views that contain the boxes, float32 or float64.
        key_maps (Tensor): ``(B, C, H', W')`` feature maps of the other views.
        boxes (Tensor): ``(N, 4)`` xyxy in pixels of the query views; N may be 0.
        batch_index (Tensor): ``(N,)``, index of the image of each box.
        stride (int): Stride of the maps in pixels.

    Returns:
        Tensor: ``(N, H', W')`` in [-1, 1]; a feature of norm zero has similarity 0.
    """
    if not len(boxes):  # mmcv's CUDA kernel cannot be launched without boxes
        return key_maps.new_zeros(0, *key_maps.shape[-2:])
    rois = torch.cat([batch_index[:, None].to(boxes), boxes], dim=1).to(query_maps.dtype)
    pooled = roi_align(query_maps, rois, (7, 7), 1 / stride, 0, 'avg', True).mean(dim=(2, 3))  # (N, C, 7, 7) -> (N, C)
    query, keys = F.normalize(pooled, dim=1), F.normalize(key_maps, dim=1)
    # A loop over images avoids a copy of the key map for every box.
    similarity = key_maps.new_zeros(len(boxes), *key_maps.shape[-2:])
    for index in range(len(keys)):
        in_image = batch_index == index
        similarity[in_image] = torch.einsum('nc,chw->nhw', query[in_image], keys[index])
    return similarity


def cells_inside(boxes: Tensor, map_shape: tuple[int, int], view_shape: tuple[int, int], stride: int) -> Tensor:
    """Marks the cells whose center lies inside a box.

    The center of a cell that extends beyond the view is the center of its visible part.

    Args:
        boxes (Tensor): ``(N, 4)`` xyxy in pixels of the view.
        map_shape (tuple[int, int]): Height and width of the feature map, H and W.
        view_shape (tuple[int, int]): Height and width of the view in pixels.
        stride (int): Stride of the map in pixels.

    Returns:
        Tensor: ``(N, H, W)`` bool.
    """
    ys, xs = (
        (start + (start + stride).clamp(max=size)) / 2
        for start, size in zip((torch.arange(n).to(boxes) * stride for n in map_shape), view_shape, strict=True)
    )
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)  # each (N, 1)
    in_x, in_y = (x1 <= xs) & (xs < x2), (y1 <= ys) & (ys < y2)  # (N, W), (N, H)
    return in_y[:, :, None] & in_x[:, None, :]


def pointing_hits(similarity: Tensor, inside: Tensor) -> Tensor:
    """Scores whether each object's most similar cell lies inside its box.

    Cells tied for the maximum count equally: a constant map scores the fraction of cells inside the box, not the score
    of the first cell.

    Args:
        similarity (Tensor): ``(N, H, W)``.
        inside (Tensor): ``(N, H, W)`` bool, from :func:`cells_inside`.

    Returns:
        Tensor: ``(N,)`` float64 in [0, 1].

    Raises:
        InputError: A similarity is not finite.
    """
    num_non_finite = int((~similarity.isfinite()).flatten(1).any(1).sum()) if len(similarity) else 0
    if num_non_finite:
        raise InputError(
            f'pointing game: the features of {num_non_finite} of {len(similarity)} objects are non-finite; use an '
            'earlier checkpoint'
        )
    if not len(similarity):
        return similarity.new_zeros(0, dtype=torch.float64)
    best = similarity == similarity.amax(dim=(1, 2), keepdim=True)
    return (best & inside).sum(dim=(1, 2)).double() / best.sum(dim=(1, 2))


@dataclass
class PointingResult:
    """Score of each query; an object has one query per direction and pair of views in which it is usable.

    Attributes:
        hits (dict[str, np.ndarray]): Level -> ``(N,)`` in [0, 1]; 1 if the maximum lies inside the box.
        area_fraction (np.ndarray): ``(N,)``, relative area of the box in the view: the score of a random point.
        center (np.ndarray): ``(N,)``, 1 if the box contains the center of the view, else 0.
        image_index (np.ndarray): ``(N,)``, index of the image of each query. Queries of one image are not independent.
        object_index (np.ndarray): ``(N,)``, index of the object among those of its image.
    """

    hits: dict[str, np.ndarray] = field(default_factory=dict)
    area_fraction: np.ndarray = field(default_factory=lambda: np.zeros(0))
    center: np.ndarray = field(default_factory=lambda: np.zeros(0))
    image_index: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    object_index: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def report(self, confidence: float = 0.95) -> dict[str, float]:
        """Summarizes the result as a flat dict, the format that loggers expect.

        Args:
            confidence (float): Confidence level of the intervals.

        Returns:
            dict[str, float]: ``num_queries``, ``num_objects``, ``num_images``; ``chance`` and ``center``, the accuracy
            of a random point and of the view's center; for each level such as C4 its accuracy ``C4`` with the
            confidence interval ``C4_low`` and ``C4_high``. Accuracies are in [0, 1].
        """
        report = {
            'num_queries': len(self.area_fraction),
            'num_objects': len(np.unique(np.stack([self.image_index, self.object_index]), axis=1).T),
            'num_images': len(np.unique(self.image_index)),
            'chance': float(self.area_fraction.mean()),
            'center': float(self.center.mean()),
        }
        for level, hits in self.hits.items():
            low, high = bootstrap_interval(hits, self.image_index, confidence)
            report.update({level: float(hits.mean()), f'{level}_low': low, f'{level}_high': high})
        return report

    def difference(self, other: 'PointingResult', level: str, confidence: float = 0.95) -> tuple[float, float, float]:
        """Computes the mean paired difference from another model's result, with its confidence interval.

        Args:
            other (PointingResult): Result of another model on the same objects and views.
            level (str): Level to compare.
            confidence (float): Confidence level of the interval.

        Returns:
            tuple[float, float, float]: Accuracy of this result minus that of ``other``, and the interval's bounds.

        Raises:
            InputError: The other result is of different objects or views.
        """
        same_images = np.array_equal(self.image_index, other.image_index)
        if not (same_images and np.allclose(self.area_fraction, other.area_fraction)):
            raise InputError('the pointing results are of different objects or views and cannot be compared')
        gain = self.hits[level] - other.hits[level]
        return float(gain.mean()), *bootstrap_interval(gain, self.image_index, confidence)


def bootstrap_interval(
    values: np.ndarray, groups: np.ndarray, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Computes a percentile bootstrap interval of a mean, resampling whole groups.

    Groups are resampled because their members, here the queries of one image, are not independent.

    Args:
        values (np.ndarray): ``(N,)`` with N >= 1.
        groups (np.ndarray): ``(N,)``, group of each value.
        confidence (float): Confidence level of the interval.
        num_resamples (int): Number of bootstrap resamples.
        seed (int): Random seed of the resamples. A fixed seed makes the interval of a result reproducible.

    Returns:
        tuple[float, float]: Lower and upper bound.
    """
    members = np.unique(groups, return_inverse=True)[1]
    counts, sums = np.bincount(members), np.bincount(members, weights=values)
    num_groups = len(counts)
    # (num_resamples, num_groups): multiplicity of each group in each resample
    weights = np.random.default_rng(seed).multinomial(num_groups, np.full(num_groups, 1 / num_groups), num_resamples)
    means = (weights @ sums) / (weights @ counts)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def format_pointing_report(report: dict[str, float]) -> str:
    """Formats a report as a text table in percent, without a trailing newline."""
    lines = [
        f'pointing game accuracy in %, {report["num_queries"]} queries for {report["num_objects"]} objects of '
        f'{report["num_images"]} images',
        f'{"level":>9}{"accuracy":>10}{"95 % interval":>18}',
    ]
    for level in [key.removesuffix('_low') for key in report if key.endswith('_low')]:
        interval = f'{100 * report[f"{level}_low"]:.1f} to {100 * report[f"{level}_high"]:.1f}'
        lines.append(f'{level:>9}{100 * report[level]:>10.1f}{interval:>18}')
    lines.append(f'{"chance":>9}{100 * report["chance"]:>10.1f}   (a random point)')
    lines.append(f'{"center":>9}{100 * report["center"]:>10.1f}   (always the center of the view)')
    return '\n'.join(lines)


def write_pointing_result(result: PointingResult, path: str | Path) -> None:
    """Writes the report and the score of every query as JSON, atomically."""
    objects = {key: getattr(result, name).tolist() for name, key in FILE_KEYS.items()}
    objects['hits'] = {level: hits.tolist() for level, hits in result.hits.items()}
    with atomic_write(path, 'w') as file:
        json.dump({'report': result.report(), 'objects': objects}, file, indent=1)


def read_pointing_result(path: str | Path) -> PointingResult:
    """Reads a file written by :func:`write_pointing_result`.

    Raises:
        InputError: The file is missing or not a pointing result.
    """
    try:
        objects = json.loads(Path(path).read_text(encoding='utf-8'))['objects']
        types = {'area_fraction': np.float64, 'center': np.float64, 'image_index': np.int64, 'object_index': np.int64}
        return PointingResult(
            hits={level: np.array(hits, np.float64) for level, hits in objects['hits'].items()},
            **{name: np.array(objects[FILE_KEYS[name]], dtype) for name, dtype in types.items()},
        )
    except FileNotFoundError:
        raise InputError(f'{path} does not exist; create it with tools/analysis_tools/pointing.py --json') from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f'{path} is not a pointing result ({type(error).__name__}: {error})') from None
