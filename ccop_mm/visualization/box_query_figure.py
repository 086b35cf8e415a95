"""Box query figure: cosine similarity of an object's feature with every cell of another view (paper, Figure 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from ccop_mm.evaluation.feature_maps import PYRAMID, STRIDES, feature_maps, normalize_views
from ccop_mm.evaluation.object_features import load_annotated_image
from ccop_mm.evaluation.pointing_game import box_similarity
from ccop_mm.evaluation.pointing_probe import MAX_AREA_FRACTION, ObjectViews, ViewSampler
from ccop_mm.utils import boxes as box_ops
from ccop_mm.utils.coco_json import AnnotatedImage
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.model import inference_mode
from ccop_mm.visualization.figure_file import check_figure_path, save_figure
from ccop_mm.visualization.palette import COLORS, WIDTH

#: Pairs of views sampled before an image is skipped.
MAX_SAMPLES = 5
QUERY_COLOR, GROUND_TRUTH_COLOR = COLORS[1], 'white'


@dataclass
class BoxQuery:
    """Similarity maps of one object.

    Attributes:
        images (tuple): Query and key view, each (h, w, 3) uint8 RGB.
        boxes (tuple): The object's box in the query and the key view, each (4,) xyxy in pixels.
        heat (dict[str, np.ndarray]): Level -> (H, W) cosine similarity of the query with each cell of the key view.
    """

    images: tuple[np.ndarray, np.ndarray]
    boxes: tuple[np.ndarray, np.ndarray]
    heat: dict[str, np.ndarray]

    def best(self, level: str) -> tuple[float, float]:
        """Returns the center (x, y) of the most similar cell in pixels of the key view."""
        row, column = np.unravel_index(self.heat[level].argmax(), self.heat[level].shape)
        return (column + 0.5) * STRIDES[level], (row + 0.5) * STRIDES[level]


def collect_box_queries(
    model: nn.Module,
    images: Sequence[tuple[int, AnnotatedImage]],
    size: int = 224,
    num: int = 4,
    seed: int = 0,
    levels: Sequence[str] = PYRAMID,
    sampler: ViewSampler | None = None,
) -> list[BoxQuery]:
    """Computes the similarity maps of one object per image.

    The object of an image is the largest one that is usable in both views and covers at most 40 % of either.

    Args:
        model (nn.Module): Model for :func:`ccop_mm.evaluation.feature_maps.feature_maps`.
        images (Sequence[tuple[int, AnnotatedImage]]): Images with their indices; tried in random order.
        size (int): Side of a view in pixels.
        num (int): Number of queries; fewer are returned if fewer images have a usable object.
        seed (int): Random seed of the order and the views.
        levels (Sequence[str]): Levels; those that the model does not have are omitted.
        sampler (ViewSampler, optional): Sampler of the views. The default is ``ViewSampler(size, seed)``.

    Raises:
        InputError: No image has a usable object, or ``num`` is below 1.
    """
    if num < 1:
        raise InputError(f'at least 1 object is required for a figure, got {num}')
    sampler = sampler or ViewSampler(size, seed)
    device = next(model.parameters()).device
    queries: list[BoxQuery] = []
    with inference_mode(model):
        for position in np.random.default_rng(seed).permutation(len(images)):
            if len(queries) == num:
                break
            index, annotated = images[position]
            image = load_annotated_image(annotated)
            if image is None:
                continue
            found = _find_object(sampler, image, annotated, index, MAX_AREA_FRACTION * size * size)
            if found is None:
                continue
            views, query_box, key_box = found
            maps = feature_maps(model, normalize_views(model.data_preprocessor, views.images, device))
            batch_index = torch.zeros(1, dtype=torch.long, device=device)
            heat = {}
            for level in [level for level in levels if level in maps]:
                query_map, key_map = maps[level].split(1)
                similarity = box_similarity(
                    query_map, key_map, query_box[None].to(query_map), batch_index, STRIDES[level]
                )
                heat[level] = similarity[0].cpu().numpy()
            queries.append(
                BoxQuery(tuple(view[..., ::-1] for view in views.images), (query_box.numpy(), key_box.numpy()), heat)
            )
    if not queries:
        raise InputError(f'none of {len(images)} images has an object that is small enough and visible in both views')
    return queries


def _find_object(
    sampler: ViewSampler, image: np.ndarray, annotated: AnnotatedImage, index: int, max_area: float
) -> tuple[ObjectViews, Tensor, Tensor] | None:
    """Samples views until they show a usable object; returns the views and the query and key box of the largest one."""
    for repeat in range(MAX_SAMPLES):
        views = sampler.sample(image, annotated.boxes, index, repeat)
        areas = torch.stack([box_ops.area(boxes) for boxes in views.boxes]).amax(0)
        usable = (areas <= max_area).nonzero().flatten()
        if len(usable):
            chosen = usable[areas[usable].argmax()]
            return views, views.boxes[0][chosen], views.boxes[1][chosen]
    return None


def plot_box_queries(queries: Sequence[BoxQuery], out: str | Path | None = None) -> Figure:
    """Plots one row per query: the query view with its box, the key view, and one heat map per level over the key view.

    Every heat map has its own color scale from its minimum to its maximum, which its title states. A cross marks the
    most similar cell, a white frame the ground-truth box of the object.

    Args:
        queries (Sequence[BoxQuery]): At least one query; all must have the same levels.
        out (str | Path, optional): Also write the figure to this ``*.png`` or ``*.svg`` file.

    Raises:
        InputError: The suffix of ``out`` is not supported.
    """
    if out is not None:
        check_figure_path(out)
    levels = list(queries[0].heat)
    cell = WIDTH / (2 + len(levels))
    title, foot = 0.2, 0.22
    height = title + len(queries) * (cell + 0.12) + foot
    figure = Figure(figsize=(WIDTH, height), facecolor='white')
    for row, query in enumerate(queries):
        bottom = height - title - (row + 1) * (cell + 0.12) + 0.02
        cells = [
            figure.add_axes(
                ((column + 0.02) * cell / WIDTH, bottom / height, 0.96 * cell / WIDTH, 0.96 * cell / height)
            )
            for column in range(2 + len(levels))
        ]
        _show_view(cells[0], query.images[0], query.boxes[0], QUERY_COLOR, 'query' if row == 0 else '')
        _show_view(cells[1], query.images[1], query.boxes[1], GROUND_TRUTH_COLOR, 'other view' if row == 0 else '')
        for axes, level in zip(cells[2:], levels, strict=True):
            heat = query.heat[level]
            view_height, view_width = query.images[1].shape[:2]
            extent = (0, heat.shape[1] * STRIDES[level], heat.shape[0] * STRIDES[level], 0)
            _show_view(axes, query.images[1], query.boxes[1], GROUND_TRUTH_COLOR, '')
            axes.imshow(heat, cmap='cividis', extent=extent, alpha=0.75, interpolation='nearest')
            x, y = query.best(level)
            # The center of a cell that extends beyond the view may lie outside the view.
            x, y = min(x, view_width - 1), min(y, view_height - 1)
            axes.plot(x, y, '+', color='black', markersize=9, mew=2.4)
            axes.plot(x, y, '+', color=QUERY_COLOR, markersize=8, mew=1.2)
            axes.set_xlim(0, view_width)
            axes.set_ylim(view_height, 0)
            scale = f'{heat.min():.2f} to {heat.max():.2f}'
            axes.set_title(f'{level}\n{scale}' if row == 0 else scale, fontsize=7, pad=2, linespacing=1.1)
    caption = (
        'orange: query box and most similar cell; white: the same object in the other view; yellow: high similarity'
    )
    figure.text(0.5, 0.03 / height, caption, ha='center', va='bottom', fontsize=7)
    if out is not None:
        save_figure(figure, out)
    return figure


def _show_view(axes: Axes, image: np.ndarray, box: np.ndarray, color: str, title: str) -> None:
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0))
    axes.set_axis_off()
    axes.set_title(title, fontsize=7, pad=2)
    x1, y1, x2, y2 = box.tolist()
    # A black outline makes the frame visible on any background.
    for edge, line in (('black', 2.4), (color, 1.2)):
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=edge, linewidth=line))
