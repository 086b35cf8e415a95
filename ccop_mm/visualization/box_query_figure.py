"""What in another view is like the object in a box? Heat maps of the cosine similarity (paper, Figure 6)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from ccop_mm import boxes as box_ops
from ccop_mm.errors import InputError
from ccop_mm.evaluation.annotated_photos import AnnotatedPhoto
from ccop_mm.evaluation.feature_maps import PYRAMID, STRIDES, feature_maps, normalize_views
from ccop_mm.evaluation.object_features import inference_mode, read_pixels
from ccop_mm.evaluation.pointing import box_similarity
from ccop_mm.evaluation.pointing_probe import MAX_SHARE, ViewDrawer
from ccop_mm.visualization.figure_file import check_figure_path, save_figure
from ccop_mm.visualization.palette import COLORS, WIDTH

#: Pairs of views drawn of a photo before it is passed over.
DRAWS = 5
#: White and black, one over the other, show on every color of a map.
QUERY_COLOR, TRUE_COLOR = COLORS[1], 'white'


@dataclass
class BoxQuery:
    """One object, asked for.

    Attributes:
        images (tuple): Query and key view, each (h, w, 3) uint8 RGB.
        boxes (tuple): The object's box in each, (4,) xyxy in pixels.
        heat (dict[str, np.ndarray]): Per level (H, W), cosine similarity of the query with each cell of the key view.
    """

    images: tuple[np.ndarray, np.ndarray]
    boxes: tuple[np.ndarray, np.ndarray]
    heat: dict[str, np.ndarray]

    def best(self, level: str) -> tuple[float, float]:
        """Center of the most similar cell, (x, y) in pixels of the key view."""
        row, column = np.unravel_index(self.heat[level].argmax(), self.heat[level].shape)
        return (column + 0.5) * STRIDES[level], (row + 0.5) * STRIDES[level]


def collect_box_queries(
    model: nn.Module,
    photos: list[tuple[int, AnnotatedPhoto]],
    size: int = 224,
    num: int = 4,
    seed: int = 0,
    levels: tuple[str, ...] = PYRAMID,
    drawer: ViewDrawer | None = None,
) -> list[BoxQuery]:
    """Queries of the largest object of each photo that both views show and that fills at most 40 % of either.

    Args:
        model (nn.Module): See :func:`ccop_mm.evaluation.feature_maps.feature_maps`.
        photos (list[tuple[int, AnnotatedPhoto]]): Numbered photos; they are tried in a random order.
        size (int): Side of a view in pixels.
        num (int): How many queries, each of another photo; fewer if there are no more.
        seed (int): Of the order and the views.
        levels (tuple[str, ...]): Maps; those the model does not have are left out.
        drawer (ViewDrawer, optional): Draws the views.

    Raises:
        InputError: If no photo has such an object, or ``num`` is below 1.
    """
    if num < 1:
        raise InputError(f'at least 1 object is needed for a figure, got {num}')
    drawer = drawer or ViewDrawer(size, seed)
    device = next(model.parameters()).device
    queries = []
    with inference_mode(model):
        for place in np.random.default_rng(seed).permutation(len(photos)):
            if len(queries) == num:
                break
            index, photo = photos[place]
            image = read_pixels(photo)
            if image is None:
                continue
            found = _find_object(drawer, image, photo, index, MAX_SHARE * size * size)
            if found is None:
                continue
            views, query, key = found
            maps = feature_maps(model, normalize_views(model.data_preprocessor, views.images, device))
            none = torch.zeros(1, dtype=torch.long, device=device)
            heat = {
                level: box_similarity(
                    maps[level][:1], maps[level][1:], query[None].to(maps[level]), none, STRIDES[level]
                )[0].cpu().numpy()
                for level in levels
                if level in maps
            }  # fmt: skip
            queries.append(
                BoxQuery(tuple(view[..., ::-1] for view in views.images), (query.numpy(), key.numpy()), heat)
            )
    if not queries:
        raise InputError(f'none of {len(photos)} photos has an object that is in both views and small enough')
    return queries


def _find_object(drawer: ViewDrawer, image: np.ndarray, photo: AnnotatedPhoto, index: int, max_area: float):
    """The first pair of views with a usable object, and the largest such: views, query box, key box; None without."""
    for repeat in range(DRAWS):
        views = drawer.draw(image, photo.boxes, index, repeat)
        areas = torch.stack([box_ops.area(boxes) for boxes in views.boxes]).amax(0)
        usable = (areas <= max_area).nonzero().flatten()
        if len(usable):
            chosen = usable[areas[usable].argmax()]
            return views, *(boxes[chosen] for boxes in views.boxes)
    return None


def draw_box_queries(queries: list[BoxQuery], out: str | Path | None = None) -> Figure:
    """A row per query: the view with its box, the other view, and a heat map for each level over it.

    Every map has its own color scale, from its least to its greatest similarity; the numbers stand above it. A cross
    marks the most similar cell, the white frame is where the object is.

    Args:
        queries (list[BoxQuery]): At least one, all with the same levels.
        out (str | Path, optional): Also write the figure to this ``*.png`` or ``*.svg``.

    Raises:
        InputError: If ``out`` has another suffix.
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
        _show(cells[0], query.images[0], query.boxes[0], QUERY_COLOR, 'query' if row == 0 else '')
        _show(cells[1], query.images[1], query.boxes[1], TRUE_COLOR, 'other view' if row == 0 else '')
        for axes, level in zip(cells[2:], levels, strict=True):
            heat = query.heat[level]
            view_height, view_width = query.images[1].shape[:2]
            extent = (0, heat.shape[1] * STRIDES[level], heat.shape[0] * STRIDES[level], 0)
            _show(axes, query.images[1], query.boxes[1], TRUE_COLOR, '')
            axes.imshow(heat, cmap='cividis', extent=extent, alpha=0.75, interpolation='nearest')
            x, y = query.best(level)
            axes.plot(min(x, view_width - 1), min(y, view_height - 1), '+', color='black', markersize=9, mew=2.4)
            axes.plot(min(x, view_width - 1), min(y, view_height - 1), '+', color=QUERY_COLOR, markersize=8, mew=1.2)
            axes.set_xlim(0, view_width)
            axes.set_ylim(view_height, 0)
            scale = f'{heat.min():.2f} to {heat.max():.2f}'
            axes.set_title(f'{level}\n{scale}' if row == 0 else scale, fontsize=7, pad=2, linespacing=1.1)
    figure.text(
        0.5, 0.03 / height, 'orange: the query\'s box, and the most similar cell; white: the same object; '
        'brighter: more similar', ha='center', va='bottom', fontsize=7,
    )  # fmt: skip
    if out is not None:
        save_figure(figure, out)
    return figure


def _show(axes, image: np.ndarray, box: np.ndarray, color: str, title: str) -> None:
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0))
    axes.set_axis_off()
    axes.set_title(title, fontsize=7, pad=2)
    x1, y1, x2, y2 = box.tolist()
    for edge, line in (('black', 2.4), (color, 1.2)):
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=edge, linewidth=line))
