"""Figure of the spatial noise curriculum: jittered boxes at several stages of training (paper, Figure 3)."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmselfsup.registry import TRANSFORMS

from ccop_mm.models import SCSBoxJitter
from ccop_mm.proposals import ProposalStore
from ccop_mm.utils.boxes import area, pairwise_iou
from ccop_mm.utils.config_file import read_config
from ccop_mm.utils.errors import InputError
from ccop_mm.visualization.box_patches import add_boxes
from ccop_mm.visualization.figure_file import check_figure_path, save_figure
from ccop_mm.visualization.palette import IMAGE_COLORS, WIDTH
from ccop_mm.visualization.stored_images import sample_stored_images

#: Size of the gaps between cells, of the titles above and of the legend below them, in inches.
GAP, TITLE, LEGEND = 0.05, 0.36, 0.26
#: Maximum ratio of a cell's height to its width; taller images are scaled down.
MAX_CELL_RATIO = 1.0
#: Factor that darkens images, so that thin light lines are visible.
BRIGHTNESS = 0.75


def plot_curriculum(
    images: Sequence[np.ndarray],
    proposals: Sequence[np.ndarray],
    jitter: SCSBoxJitter,
    progresses: Sequence[float] = (0, 0.5, 1),
    out: str | Path | None = None,
    seed: int = 0,
    num_proposals: int = 12,
    num_objects: int = 3,
) -> Figure:
    """Plots one row per image and one column per stage of training.

    Each cell shows the image's first proposals as thin white lines, a few disjoint ones of them as thick colored lines,
    and the valid jittered candidates of these few at that stage as thin lines of the same color.

    Args:
        images (Sequence[np.ndarray]): At least one image, each (h, w, 3) uint8 RGB.
        proposals (Sequence[np.ndarray]): Proposals of each image, (n, 4) xyxy in pixels; n may be 0.
        jitter (SCSBoxJitter): Box jitter; its ``progress`` is set for each column and restored at the end.
        progresses (Sequence[float]): Fractions of training completed, in [0, 1].
        out (str | Path, optional): Also write the figure to this ``*.png`` or ``*.svg`` file.
        seed (int): Random seed of the candidates.
        num_proposals (int): Proposals shown per image. The paper reports 12 per view on average.
        num_objects (int): Proposals per image whose candidates are shown.

    Returns:
        Figure: Matplotlib figure whose box patches are labeled ``'proposal'``, ``'object'`` and ``'candidate'``.

    Raises:
        InputError: The suffix of ``out`` is not supported, or a fraction is not in [0, 1].
        ValueError: There are no images or no stages, or the numbers of images and of arrays of proposals differ.
    """
    if not all(0 <= progress <= 1 for progress in progresses):
        raise InputError(
            f'progress is the fraction of training completed, in [0, 1]; got {", ".join(map(str, progresses))}'
        )
    if not len(images) or not len(progresses) or len(images) != len(proposals):
        raise ValueError(
            'at least one image, one array of proposals per image and one stage are required, got '
            f'{len(images)} images, {len(proposals)} arrays of proposals and {len(progresses)} stages'
        )
    if out is not None:
        check_figure_path(out)
    figure, cells = _make_cells([image.shape[:2] for image in images], len(progresses))
    previous_progress = jitter.progress
    try:
        for column, progress in enumerate(progresses):
            jitter.progress = progress
            title = f'$t = {progress:g}$\n$\\zeta = {jitter.zeta:.2f},\\ \\beta = {jitter.beta:.2f}$'
            cells[0][column].set_title(title, fontsize=8, pad=4, linespacing=1.3)
            for row, (image, boxes) in enumerate(zip(images, proposals, strict=True)):
                shown = torch.as_tensor(boxes, dtype=torch.float32)[:num_proposals]
                objects = shown[select_disjoint(shown, image.shape[:2], num_objects)]
                # The same generator state in every column, so that columns differ by the stage only.
                generator = torch.Generator().manual_seed(seed + row)
                candidates, valid = jitter.jitter(objects, image.shape[:2], generator)
                _plot_cell(cells[row][column], image, shown, objects, candidates, valid)
    finally:
        jitter.progress = previous_progress
    _add_legend(figure)
    if out is not None:
        save_figure(figure, out)
    return figure


def select_disjoint(boxes: torch.Tensor, img_shape: tuple[int, int], limit: int) -> list[int]:
    """Selects disjoint boxes for a figure, those of medium size first.

    Args:
        boxes (Tensor): (N, 4) xyxy in pixels.
        img_shape (tuple[int, int]): Height and width of the image.
        limit (int): Maximum number of boxes.

    Returns:
        list[int]: Indices of the selected boxes.
    """
    area_fraction = area(boxes) / (img_shape[0] * img_shape[1])
    # A box of a tenth of the image is large enough to see and leaves room for its candidates. Sizes are compared on a
    # log scale.
    order = (area_fraction.clamp(min=1e-6) / 0.1).log().abs().argsort(stable=True)
    overlap = pairwise_iou(boxes, boxes)
    chosen: list[int] = []
    for index in order.tolist():
        if len(chosen) < limit and not overlap[index, chosen].any():
            chosen.append(index)
    return chosen


def sample_images(
    store: ProposalStore, image_root: str | Path, num: int = 3, seed: int = 0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Loads randomly chosen images of a proposals file that have proposals.

    Args:
        store (ProposalStore): Proposals.
        image_root (str | Path): Root folder of the images.
        num (int): Number of images; fewer are returned if fewer are usable.
        seed (int): Random seed of the choice.

    Returns:
        tuple[list, list]: Images, each (h, w, 3) uint8 RGB, and the boxes of each image, (n, 4) float32 xyxy in pixels.

    Raises:
        InputError: ``num`` is below 1, the folder is missing, or no image that has proposals can be read.
    """
    if num < 1:
        raise InputError(f'at least 1 image is required for a figure, got {num}')
    images: list[np.ndarray] = []
    proposals: list[np.ndarray] = []
    for sampled in sample_stored_images(store, image_root, seed, min_boxes=1):
        if isinstance(sampled, str):
            print_log(f'skipped {sampled}', 'current', logging.WARNING)
            continue
        _, image, boxes = sampled
        images.append(image[..., ::-1])
        proposals.append(boxes)
        if len(images) == num:
            break
    if not images:
        raise InputError(f'{image_root}: no readable image with proposals found')
    return images, proposals


def load_jitter(config: str | Path | None = None) -> SCSBoxJitter:
    """Builds the box jitter of a pre-training config.

    Args:
        config (str | Path, optional): Config file. Without a file, or if its model has no ``box_jitter``, the defaults
            of :class:`SCSBoxJitter`, which are the paper's settings, are used.

    Raises:
        InputError: The file is missing or not a valid config.
    """
    settings = {'type': 'mmselfsup.SCSBoxJitter'}
    if config is not None:
        settings = read_config(config).get('model', {}).get('box_jitter') or settings
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        return TRANSFORMS.build(settings)


def _make_cells(shapes: list[tuple[int, int]], num_columns: int) -> tuple[Figure, list[list[Axes]]]:
    """Creates a figure of the page width with a row of axes per image, in the aspect ratio of the image."""
    cell_width = (WIDTH - GAP * (num_columns + 1)) / num_columns
    heights = [cell_width * min(height / width, MAX_CELL_RATIO) for height, width in shapes]
    total = TITLE + LEGEND + sum(heights) + GAP * (len(heights) - 1)
    figure = Figure(figsize=(WIDTH, total), facecolor='white')
    cells, bottom = [], total - TITLE
    for height in heights:
        bottom -= height
        lefts = [GAP + column * (cell_width + GAP) for column in range(num_columns)]
        cells.append(
            [figure.add_axes((left / WIDTH, bottom / total, cell_width / WIDTH, height / total)) for left in lefts]
        )
        bottom -= GAP
    return figure, cells


def _plot_cell(
    axes: Axes,
    image: np.ndarray,
    shown: torch.Tensor,
    objects: torch.Tensor,
    candidates: torch.Tensor,
    valid: torch.Tensor,
) -> None:
    height, width = image.shape[:2]
    # The extent places pixel edges, not pixel centers, at integers, as box coordinates do.
    axes.imshow((image * BRIGHTNESS).astype(np.uint8), extent=(0, width, height, 0))
    axes.set_axis_off()
    add_boxes(axes, shown, 'proposal', 'white', linewidth=0.5)
    for number, box in enumerate(objects):
        color = IMAGE_COLORS[number % len(IMAGE_COLORS)]
        add_boxes(axes, candidates[number][valid[number]], 'candidate', color, linewidth=0.6, alpha=0.9)
        add_boxes(axes, box[None], 'object', color, linewidth=1.8)


def _add_legend(figure: Figure) -> None:
    entries = [
        (Line2D([], [], color='0.6', linewidth=0.5), 'proposals (white)'),
        (Line2D([], [], color=IMAGE_COLORS[0], linewidth=1.8), 'key box (one of the proposals)'),
        (Line2D([], [], color=IMAGE_COLORS[0], linewidth=0.6), 'jittered candidates of the key box'),
    ]
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc='lower center', ncols=3, fontsize=8, frameon=False, borderpad=0.2)
