"""The spatial noise curriculum as a picture: jittered boxes on photos, early and late in training (paper, Figure 3)."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmselfsup.registry import TRANSFORMS

from ccop_mm.boxes import area, pairwise_iou
from ccop_mm.config_file import read_config
from ccop_mm.errors import InputError
from ccop_mm.proposals import BadPhoto, ProposalStore, load_photo
from ccop_mm.visualization.figure_file import check_figure_path, save_figure
from ccop_mm.visualization.palette import PHOTO_COLORS, WIDTH

GAP, TITLE, LEGEND = 0.05, 0.36, 0.26  # inches between cells, above them and below them
#: Height by width of the tallest cell; taller photos are shown smaller, so that one of them does not fill the page.
MAX_CELL_RATIO = 1.0
#: Brightness that is left of a photo.
DIMMED = 0.75


def draw_curriculum(
    photos: Sequence[np.ndarray],
    proposals: Sequence[np.ndarray],
    jitter,
    progresses: Sequence[float] = (0, 0.5, 1),
    out: str | Path | None = None,
    seed: int = 0,
    num_proposals: int = 12,
    num_objects: int = 3,
) -> Figure:
    """Draws a row per photo and a column per stage of training.

    Each cell shows the photo's first proposals, thin and white; a few of them that lie apart, thick and colored; and
    for these few the valid candidates that ``jitter`` draws at that stage, thin and in the same color.

    Args:
        photos (Sequence[np.ndarray]): Each (h, w, 3) uint8 RGB; at least one.
        proposals (Sequence[np.ndarray]): For each photo (n, 4) xyxy in pixels; n may be 0.
        jitter (SCSBoxJitter): Its ``progress`` is set for each column and put back at the end.
        progresses (Sequence[float]): Fractions of training done, in [0, 1].
        out (str | Path, optional): Also write the figure to this ``*.png`` or ``*.svg``.
        seed (int): Seed of the candidates.
        num_proposals (int): Proposals shown per photo; 12 are what the paper has on average in a view.
        num_objects (int): Proposals per photo whose candidates are shown.

    Returns:
        Figure: Of matplotlib; the patches' labels are ``'proposal'``, ``'object'`` and ``'candidate'``.

    Raises:
        InputError: If ``out`` has another suffix, or a stage is not in [0, 1].
        ValueError: If there is no photo or no stage, or not one array of proposals per photo.
    """
    if not all(0 <= progress <= 1 for progress in progresses):
        raise InputError(f'progress is a fraction of the training, from 0 to 1; got {", ".join(map(str, progresses))}')
    if not len(photos) or not len(progresses) or len(photos) != len(proposals):
        raise ValueError(f'{len(photos)} photos, {len(proposals)} arrays of proposals, {len(progresses)} stages')
    if out is not None:
        check_figure_path(out)
    figure, cells = _make_cells([photo.shape[:2] for photo in photos], len(progresses))
    before = jitter.progress
    try:
        for column, progress in enumerate(progresses):
            jitter.progress = progress
            title = f'$t = {progress:g}$\n$\\zeta = {jitter.zeta:.2f},\\ \\beta = {jitter.beta:.2f}$'
            cells[0][column].set_title(title, fontsize=8, pad=4, linespacing=1.3)
            for row, (photo, boxes) in enumerate(zip(photos, proposals, strict=True)):
                shown = torch.as_tensor(boxes, dtype=torch.float32)[:num_proposals]
                objects = shown[pick_apart(shown, photo.shape[:2], num_objects)]
                # The same noise source in every column: what differs between them is the stage alone.
                generator = torch.Generator().manual_seed(seed + row)
                candidates, valid = jitter.jitter(objects, photo.shape[:2], generator)
                _draw_cell(cells[row][column], photo, shown, objects, candidates, valid)
    finally:
        jitter.progress = before
    _add_legend(figure)
    if out is not None:
        save_figure(figure, out)
    return figure


def pick_apart(boxes: torch.Tensor, img_shape: tuple[int, int], limit: int) -> list[int]:
    """Chooses boxes that can be told apart in a figure: medium-sized first, each disjoint from those before it.

    Args:
        boxes (Tensor): (N, 4) xyxy in pixels.
        img_shape (tuple[int, int]): Height and width of the photo.
        limit (int): How many at most.

    Returns:
        list[int]: Indices; fewer than ``limit`` if the others overlap.
    """
    share = area(boxes) / (img_shape[0] * img_shape[1])
    # A tenth of the photo leaves room for the candidates and is large enough to see; distance on a log scale.
    order = (share.clamp(min=1e-6) / 0.1).log().abs().argsort(stable=True)
    overlap = pairwise_iou(boxes, boxes)
    chosen = []
    for index in order.tolist():
        if len(chosen) < limit and not overlap[index, chosen].any():
            chosen.append(index)
    return chosen


def sample_photos(
    store: ProposalStore, image_root: str | Path, num: int = 3, seed: int = 0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Reads some photos of a proposals file that have proposals.

    Args:
        store (ProposalStore): The proposals.
        image_root (str | Path): Folder that its file names are relative to.
        num (int): How many photos; fewer if there are no more.
        seed (int): Seed of the choice.

    Returns:
        tuple[list, list]: Photos (h, w, 3) uint8 RGB and, for each, its boxes (n, 4) float32 xyxy in pixels.

    Raises:
        InputError: If the folder is missing, or no photo can be read, or those that can have no proposal.
    """
    if num < 1:
        raise InputError(f'at least 1 photo is needed for a figure, got {num}')
    if not Path(image_root).is_dir():
        raise InputError(f'{image_root}: no such folder; name the folder with the photos of the proposals file')
    photos, proposals = [], []
    for image_id in np.random.default_rng(seed).permutation(store.image_ids).tolist():
        if len(photos) == num:
            break
        boxes, path = store.boxes(image_id), Path(image_root, store.file_name(image_id))
        if not len(boxes):
            continue
        try:
            image, _ = load_photo(path)
        except BadPhoto as reason:
            print_log(f'skipped {path}: {reason}', 'current', logging.WARNING)
            continue
        if image.shape[:2] != store.size(image_id):
            print_log(f'skipped {path}: not of the size that its proposals were made for', 'current', logging.WARNING)
            continue
        photos.append(image[..., ::-1])
        proposals.append(boxes)
    if not photos:
        raise InputError(f'{image_root}: holds no readable photo that has proposals')
    return photos, proposals


def load_jitter(config: str | Path | None = None):
    """The box jitter of a pre-training config, or the paper's.

    Args:
        config (str | Path, optional): A config file whose model may have ``box_jitter``.

    Returns:
        SCSBoxJitter: Built from the config, or with its default arguments.

    Raises:
        InputError: If there is no such file, or it is no config.
    """
    settings = {'type': 'mmselfsup.SCSBoxJitter'}
    if config is not None:
        settings = read_config(config).get('model', {}).get('box_jitter') or settings
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        return TRANSFORMS.build(settings)


def _make_cells(shapes: list[tuple[int, int]], num_columns: int) -> tuple[Figure, list[list[Axes]]]:
    """A figure of the page's width and, per photo, a row of axes that fits the photo's shape."""
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


def _draw_cell(axes: Axes, photo, shown, objects, candidates, valid) -> None:
    height, width = photo.shape[:2]
    # Dimmed, so that thin light lines show. The extent puts pixel edges at whole numbers, as boxes count them.
    axes.imshow((photo * DIMMED).astype(np.uint8), extent=(0, width, height, 0))
    axes.set_axis_off()
    _add_boxes(axes, shown, 'proposal', edgecolor='white', linewidth=0.5)
    for number, box in enumerate(objects):
        color = PHOTO_COLORS[number % len(PHOTO_COLORS)]
        _add_boxes(axes, candidates[number][valid[number]], 'candidate', edgecolor=color, linewidth=0.6, alpha=0.9)
        _add_boxes(axes, box[None], 'object', edgecolor=color, linewidth=1.8)


def _add_boxes(axes: Axes, boxes: torch.Tensor, label: str, **style) -> None:
    for x1, y1, x2, y2 in boxes.tolist():
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, label=label, joinstyle='miter', **style))


def _add_legend(figure: Figure) -> None:
    entries = [
        (Line2D([], [], color='0.6', linewidth=0.5), 'proposals (white)'),
        (Line2D([], [], color=PHOTO_COLORS[0], linewidth=1.8), 'one of them as key box'),
        (Line2D([], [], color=PHOTO_COLORS[0], linewidth=0.6), 'its jittered candidates'),
    ]
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc='lower center', ncols=3, fontsize=8, frameon=False, borderpad=0.2)
