"""Figures of proposals: images with their boxes, and the distribution of box sizes."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from ccop_mm.proposals import ProposalStore
from ccop_mm.proposals.evaluate import match_images
from ccop_mm.utils.coco_json import read_objects
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write
from ccop_mm.visualization.figure_file import check_figure_path, save_figure
from ccop_mm.visualization.palette import COLORS, IMAGE_COLORS, bgr
from ccop_mm.visualization.stored_images import sample_stored_images

GROUND_TRUTH_COLOR = (255, 255, 255)


def plot_boxes(image: np.ndarray, boxes: np.ndarray, ground_truth_boxes: np.ndarray | None = None) -> np.ndarray:
    """Draws boxes on a copy of an image: proposals in colored lines, ground-truth boxes in thick white lines.

    The line width is 1 px per 400 px of the image's longer side.

    Args:
        image (np.ndarray): (h, w, 3) uint8 BGR.
        boxes (np.ndarray): (n, 4) xyxy in pixels.
        ground_truth_boxes (np.ndarray, optional): (m, 4) xyxy in pixels.

    Returns:
        np.ndarray: (h, w, 3) uint8 BGR.
    """
    canvas = np.array(image, order='C')
    width = max(1, round(max(image.shape[:2]) / 400))
    for number, box in enumerate(boxes):
        _plot_box(canvas, box, bgr(IMAGE_COLORS[number % len(IMAGE_COLORS)]), width)
    for box in () if ground_truth_boxes is None else ground_truth_boxes:
        _plot_box(canvas, box, (0, 0, 0), 4 * width)
        _plot_box(canvas, box, GROUND_TRUTH_COLOR, 2 * width)
    return canvas


def browse_proposals(
    store: ProposalStore,
    image_root: str | Path,
    out: str | Path,
    num_images: int = 20,
    num_boxes: int = 12,
    seed: int = 0,
    annotation_file: str | Path | None = None,
) -> tuple[list[Path], list[str]]:
    """Writes randomly chosen images of a store with their proposals, one JPEG per image.

    Args:
        store (ProposalStore): Proposals.
        image_root (str | Path): Root folder of the images.
        out (str | Path): Folder to write to; ``a/b.png`` is written as ``a__b.png.jpg``.
        num_images (int): Number of images.
        num_boxes (int): Maximum number of boxes per image. The first boxes of the stored order, which is random, are
            used.
        seed (int): Random seed of the choice of images.
        annotation_file (str | Path, optional): COCO annotation file whose ground-truth boxes are drawn as well, matched
            by file name.

    Returns:
        tuple[list[Path], list[str]]: The files written; and one line for each image that could not be drawn, with the
        reason.

    Raises:
        InputError: A number is below 1, the folder or the annotation file is missing, or no image could be drawn.
    """
    if num_images < 1 or num_boxes < 1:
        raise InputError(f'at least 1 image and 1 box are required, got {num_images} and {num_boxes}')
    ground_truth_boxes = _read_ground_truth_boxes(annotation_file)
    written: list[Path] = []
    reasons: list[str] = []
    for sampled in sample_stored_images(store, image_root, seed):
        if isinstance(sampled, str):
            reasons.append(sampled)
            continue
        name, image, boxes = sampled
        canvas = plot_boxes(image, boxes[:num_boxes], ground_truth_boxes.get(name))
        path = Path(out, f'{name.replace("/", "__")}.jpg')
        with atomic_write(path) as file:
            file.write(cv2.imencode('.jpg', canvas)[1].tobytes())
        written.append(path)
        if len(written) == num_images:
            break
    if not written:
        reason = reasons[0] if reasons else 'the proposals file contains no images'
        raise InputError(f'{image_root}: no image of the proposals file could be drawn ({reason})')
    return written, reasons


def plot_box_sizes(
    store: ProposalStore, annotation_file: str | Path | None = None, out: str | Path | None = None
) -> Figure:
    """Plots a histogram of relative box sizes: the square root of a box's area divided by that of its image.

    Args:
        store (ProposalStore): Proposals.
        annotation_file (str | Path, optional): COCO annotation file. If given, only the images that it shares with the
            store are counted, and their ground-truth boxes are plotted as well.
        out (str | Path, optional): Also write the figure to this ``*.png`` or ``*.svg`` file.

    Returns:
        Figure: Matplotlib figure; its axes contain one outline with 40 bins for the proposals and one for the
        ground-truth boxes.

    Raises:
        InputError: The suffix of ``out`` is not supported, or the annotation file is invalid or of other images.
    """
    if out is not None:
        check_figure_path(out)
    if annotation_file is None:
        series = {'proposals': _relative_sides((size, boxes) for _, _, size, boxes in store.entries())}
    else:
        pairs, _ = match_images(store, annotation_file)
        series = {
            'proposals': _relative_sides((size, boxes) for size, boxes, _ in pairs),
            'annotated objects': _relative_sides((size, boxes) for size, _, boxes in pairs),
        }
    figure = Figure(figsize=(3.5, 2.6), facecolor='white', layout='constrained')
    axes = figure.add_subplot()
    bins = np.linspace(0, 1, 41)
    for (label, sides), color in zip(series.items(), (COLORS[0], COLORS[5]), strict=False):
        percent = np.full(len(sides), 100 / max(1, len(sides)))
        label = f'{label} ({len(sides):,})'
        axes.hist(sides, bins, weights=percent, histtype='stepfilled', color=color, alpha=0.3)
        axes.hist(sides, bins, weights=percent, histtype='step', color=color, linewidth=1.2, label=label)
    axes.set_xlim(0, 1)
    axes.set_xlabel(r'$\sqrt{\mathrm{area}}$ relative to the image', fontsize=8)
    axes.set_ylabel('boxes (%)', fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(loc='lower center', bbox_to_anchor=(0.5, 1), ncols=len(series), fontsize=7, frameon=False)
    if out is not None:
        save_figure(figure, out)
    return figure


def _plot_box(canvas: np.ndarray, box: np.ndarray, color: tuple[int, int, int], width: int) -> None:
    x1, y1, x2, y2 = (round(value) for value in np.asarray(box, dtype=float).tolist())
    # x2 and y2 are exclusive; OpenCV's corners are inclusive.
    cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), color, width)


def _read_ground_truth_boxes(annotation_file: str | Path | None) -> dict[str, np.ndarray]:
    """Reads the boxes of a COCO annotation file: file name -> (m, 4) xyxy."""
    if annotation_file is None:
        return {}
    images, objects = read_objects(annotation_file)
    return {image['file_name']: objects[image['id']] for image in images if image['id'] in objects}


def _relative_sides(sized_boxes: Iterable[tuple[tuple[int, int], np.ndarray]]) -> np.ndarray:
    """Computes the relative sizes (n,) of all boxes of the ``((height, width), boxes)`` of several images."""
    sides = [
        np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64) / (height * width))
        for (height, width), boxes in sized_boxes
    ]
    return np.concatenate([np.empty(0), *sides])
