"""Candidate boxes of one image, before selection: selective search, random boxes or annotations."""

import cv2
import numpy as np

from ccop_mm.proposals.ground_truth import AnnotatedImageFile, ground_truth_boxes
from ccop_mm.proposals.selection import random_bits
from ccop_mm.proposals.settings import ENGINES, MODES, ProposalSettings
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import ImageFile

#: Number of random boxes per image: about as many as selective search leaves after filtering by area and aspect ratio.
NUM_RANDOM = 1500

#: Methods of OpenCV's selective search that select a strategy.
_OPENCV_SWITCHES = {
    'fast': 'switchToSelectiveSearchFast',
    'quality': 'switchToSelectiveSearchQuality',
    'single': 'switchToSingleStrategy',
}


def find_candidates(image: np.ndarray, image_file: ImageFile, settings: ProposalSettings) -> np.ndarray:
    """Finds the candidate boxes of one image by the method of the settings.

    Args:
        image (np.ndarray): (H, W, 3) uint8 in BGR order.
        image_file (ImageFile): Source of the image. Its id seeds random boxes; the method ``'ground-truth'`` requires
            an :class:`~ccop_mm.proposals.ground_truth.AnnotatedImageFile`.
        settings (ProposalSettings): Method and its parameters.

    Returns:
        np.ndarray: (n, 4) float32 xyxy boxes in pixels of the image. Their order depends on the arguments only.

    Raises:
        UnreadableImageError: If the annotations do not match the image.
    """
    height, width = image.shape[:2]
    if settings.method == 'random':
        return random_boxes((height, width), image_file.image_id, settings.seed, settings.min_area, settings.max_aspect)
    if settings.method == 'ground-truth':
        if not isinstance(image_file, AnnotatedImageFile):
            raise TypeError('the method ground-truth requires an AnnotatedImageFile, see ground_truth.annotate')
        return ground_truth_boxes(image_file, (height, width))
    return propose(image, settings.mode, settings.engine, settings.max_side)


def propose(image: np.ndarray, mode: str = 'fast', engine: str = 'native', max_side: int = 0) -> np.ndarray:
    """Runs selective search on one image.

    OpenCV returns the boxes of several hierarchies in an order that depends on ``rand()``, but the set of distinct
    boxes depends on the image only. This function returns that set in ascending order of ``(x1, y1, x2, y2)``.

    Args:
        image (np.ndarray): (H, W, 3) uint8 in BGR order.
        mode (str): Strategy: ``'fast'``, ``'quality'`` or ``'single'``.
        engine (str): ``'native'`` or ``'opencv'``. Both return the same boxes.
        max_side (int): An image with a longer side is resized to this one for the search, and the boxes are scaled back
            and rounded; 0 disables resizing.

    Returns:
        np.ndarray: (n, 4) float32 xyxy boxes in whole pixels; x2 and y2 are exclusive. They are distinct and sorted
        unless the image was resized. The root of every hierarchy, ``(0, 0, W, H)``, is included if the image is at
        least two pixels wide and high.

    Raises:
        InputError: As :func:`require_engine`.
        ValueError: If the image is not (H, W, 3) uint8.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'expected a (H, W, 3) uint8 image, got {image.shape} {image.dtype}')
    require_engine(mode, engine)
    height, width = image.shape[:2]
    if not max_side or max(height, width) <= max_side:
        return _search(image, mode, engine).astype(np.float32)
    scale = max_side / max(height, width)
    small_width, small_height = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, (small_width, small_height), interpolation=cv2.INTER_AREA)
    boxes = _search(small, mode, engine).astype(np.float64)
    return np.rint(boxes * np.array([width / small_width, height / small_height] * 2)).astype(np.float32)


def require_engine(mode: str = 'fast', engine: str = 'native') -> None:
    """Checks that selective search can run here.

    Importing the native engine compiles it on first use on a machine, so that worker processes load it from the cache.

    Raises:
        InputError: If the mode or the engine is unknown, or the package that the engine requires is missing.
    """
    if mode not in MODES:
        raise InputError(f'unknown mode of selective search {mode!r}: choose one of {", ".join(MODES)}')
    if engine not in ENGINES:
        raise InputError(f'unknown engine of selective search {engine!r}: choose one of {", ".join(ENGINES)}')
    if engine == 'native':
        from ccop_mm.proposals import selective_search  # noqa: F401
    elif not hasattr(cv2, 'ximgproc'):
        raise InputError(
            'OpenCV has no module cv2.ximgproc, which selective search requires: opencv-contrib-python must be the '
            'OpenCV package that was installed last; `python -m ccop_mm.doctor` prints the command'
        )


def _search(image: np.ndarray, mode: str, engine: str) -> np.ndarray:
    """Returns the (n, 4) integer boxes of an image, distinct and in ascending order."""
    if engine == 'native':
        # Imported on use: numba and its compiled kernels take seconds to load.
        from ccop_mm.proposals import selective_search

        return selective_search.search(image, mode)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    getattr(search, _OPENCV_SWITCHES[mode])()
    boxes = np.asarray(search.process()).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # xywh -> xyxy
    return np.unique(boxes, axis=0)  # sorts rows by their first column, then the second, and so on


def random_boxes(
    shape: tuple[int, int], image_id: int, seed: int = 0, min_area: float = 144.0, max_aspect: float = 3.0
) -> np.ndarray:
    """Samples boxes at random positions within the limits of area and aspect ratio.

    The logarithms of area and aspect ratio are uniform, from ``min_area`` to the image area and within ``max_aspect``;
    positions are uniform over those where the box fits.

    Args:
        shape (tuple[int, int]): Height and width of the image in pixels.
        image_id (int): Image id; together with ``seed``, determines all boxes.
        seed (int): Random seed.
        min_area (float): Smallest area in square pixels, before the sides are rounded.
        max_aspect (float): Largest ratio of the longer side to the shorter side, before the sides are rounded.

    Returns:
        np.ndarray: (n, 4) float32 xyxy boxes in whole pixels. n is at most :data:`NUM_RANDOM`, and 0 if the image is
        smaller than ``min_area``.
    """
    height, width = shape
    min_area = max(min_area, 1)
    if min_area > height * width:
        return np.empty((0, 4), np.float32)
    # The upper 53 bits give a uniform float64 in [0, 1).
    uniform = (random_bits(4 * NUM_RANDOM, image_id, seed, stream=1) >> 11) * 2.0**-53
    size, ratio, x, y = uniform.reshape(4, NUM_RANDOM)
    area = min_area * (height * width / min_area) ** size
    aspect = min(max_aspect, height * width) ** (2 * ratio - 1)
    sides = np.rint(np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)])).clip(1)
    room = np.array([[width], [height]]) - sides
    top_left = np.floor(np.stack([x, y]) * (room + 1))
    fits = (room >= 0).all(axis=0)
    return np.concatenate([top_left, top_left + sides])[:, fits].T.astype(np.float32)
