"""Proposals to look at: photos with their boxes, and how large the boxes are."""

from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from ccop_mm.errors import InputError
from ccop_mm.fileio import atomic_write
from ccop_mm.proposals import BadPhoto, ProposalStore, load_photo
from ccop_mm.proposals.evaluate import match, read_objects
from ccop_mm.visualization.figure_file import check_figure_path, save_figure
from ccop_mm.visualization.palette import COLORS, PHOTO_COLORS, bgr

TRUE_COLOR = (255, 255, 255)


def draw_boxes(image: np.ndarray, boxes: np.ndarray, true_boxes: np.ndarray | None = None) -> np.ndarray:
    """A copy of a photo with boxes on it, lines a pixel wide for each 400 of its longer side; true boxes white, thick.

    Args:
        image (np.ndarray): (h, w, 3) uint8 BGR.
        boxes (np.ndarray): (n, 4) xyxy in pixels.
        true_boxes (np.ndarray, optional): (m, 4) xyxy in pixels.

    Returns:
        np.ndarray: (h, w, 3) uint8 BGR.
    """
    drawn = np.array(image, order='C')
    width = max(1, round(max(image.shape[:2]) / 400))
    for number, box in enumerate(boxes):
        _draw(drawn, box, bgr(PHOTO_COLORS[number % len(PHOTO_COLORS)]), width)
    for box in () if true_boxes is None else true_boxes:
        _draw(drawn, box, (0, 0, 0), 4 * width)
        _draw(drawn, box, TRUE_COLOR, 2 * width)
    return drawn


def browse(
    store: ProposalStore,
    image_root: str | Path,
    out: str | Path,
    num_photos: int = 20,
    num_boxes: int = 12,
    seed: int = 0,
    annotation_file: str | Path | None = None,
) -> tuple[list[Path], list[str]]:
    """Draws some photos of a store, each to a JPEG of its own.

    Args:
        store (ProposalStore): The proposals.
        image_root (str | Path): Folder that its file names are relative to.
        out (str | Path): Folder to write to; ``a/b.png`` becomes ``a__b.png.jpg``.
        num_photos (int): How many photos, chosen at random.
        num_boxes (int): At most so many boxes of each, the first of the stored order, which is random.
        seed (int): Seed of the choice.
        annotation_file (str | Path, optional): COCO json whose true boxes are drawn too, matched by file name.

    Returns:
        tuple[list[Path], list[str]]: The files written, and why a photo could not be drawn, a line each.

    Raises:
        InputError: If a number is out of range, the folder or the json is missing, or no photo can be drawn.
    """
    if num_photos < 1 or num_boxes < 1:
        raise InputError(f'at least 1 photo and 1 box are needed, got {num_photos} and {num_boxes}')
    if not Path(image_root).is_dir():
        raise InputError(f'{image_root}: no such folder; name the folder with the photos of the proposals file')
    true_boxes = _true_boxes(annotation_file)
    written, reasons = [], []
    for image_id in np.random.default_rng(seed).permutation(store.image_ids).tolist():
        if len(written) == num_photos:
            break
        name = store.file_name(image_id)
        try:
            image, _ = load_photo(Path(image_root, name))
        except BadPhoto as error:
            reasons.append(f'{name}: {error}')
            continue
        if image.shape[:2] != store.size(image_id):
            reasons.append(f'{name}: not of the size that its proposals were made for')
            continue
        drawn = draw_boxes(image, store.boxes(image_id)[:num_boxes], true_boxes.get(name))
        path = Path(out, f'{name.replace("/", "__")}.jpg')
        with atomic_write(path) as file:
            file.write(cv2.imencode('.jpg', drawn)[1].tobytes())
        written.append(path)
    if not written:
        raise InputError(
            f'{image_root}: no photo of the proposals file could be drawn ({(reasons or ["it has none"])[0]})'
        )
    return written, reasons


def draw_sizes(
    store: ProposalStore, annotation_file: str | Path | None = None, out: str | Path | None = None
) -> Figure:
    """A histogram of how large boxes are: the square root of a box's area by that of its photo's.

    Args:
        store (ProposalStore): The proposals.
        annotation_file (str | Path, optional): COCO json; then the photos that it shares with the store count, and
            their true boxes are shown as well.
        out (str | Path, optional): Also write the figure to this ``*.png`` or ``*.svg``.

    Returns:
        Figure: Of matplotlib; its axes' patches are a polygon of 40 bins for the proposals and one for the true boxes.

    Raises:
        InputError: If ``out`` has another suffix, or the json is at fault or of other photos.
    """
    if out is not None:
        check_figure_path(out)
    if annotation_file is None:
        series = {'proposals': _relative_sides((size, boxes) for _, _, size, boxes in store.entries())}
    else:
        pairs, _ = match(store, annotation_file)
        series = {
            'proposals': _relative_sides((size, boxes) for size, boxes, _ in pairs),
            'annotated objects': _relative_sides((size, boxes) for size, _, boxes in pairs),
        }
    figure = Figure(figsize=(3.5, 2.6), facecolor='white', layout='constrained')
    axes = figure.add_subplot()
    bins = np.linspace(0, 1, 41)
    for (label, sides), color in zip(series.items(), (COLORS[0], COLORS[5]), strict=False):
        share = np.full(len(sides), 100 / max(1, len(sides)))
        label = f'{label} ({len(sides):,})'
        axes.hist(sides, bins, weights=share, histtype='stepfilled', color=color, alpha=0.3)
        axes.hist(sides, bins, weights=share, histtype='step', color=color, linewidth=1.2, label=label)
    axes.set_xlim(0, 1)
    axes.set_xlabel(r'$\sqrt{\mathrm{area}}$ relative to the photo', fontsize=8)
    axes.set_ylabel('share of the boxes, %', fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
    if out is not None:
        save_figure(figure, out)
    return figure


def _draw(image, box, color, width):
    x1, y1, x2, y2 = (round(value) for value in np.asarray(box, dtype=float).tolist())
    # x2 and y2 are exclusive, OpenCV's corners are not.
    cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), color, width)


def _true_boxes(annotation_file):
    """file name -> (m, 4) xyxy."""
    if annotation_file is None:
        return {}
    images, objects = read_objects(annotation_file)
    return {image['file_name']: objects[image['id']] for image in images if image['id'] in objects}


def _relative_sides(photos):
    """(n,) of all boxes of ``((height, width), boxes)``."""
    sides = [
        np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64) / (height * width))
        for (height, width), boxes in photos
    ]
    return np.concatenate([np.empty(0), *sides])
