"""The boxes of one photo: OpenCV's selective search."""

import cv2
import numpy as np

from ccop_mm.errors import InputError

# Uijlings et al. (IJCV 2013): how many segmentations, colour spaces and similarities are combined.
MODES = {
    'fast': 'switchToSelectiveSearchFast',
    'quality': 'switchToSelectiveSearchQuality',
    'single': 'switchToSingleStrategy',
}


def require_search(mode='fast'):
    """Raises :class:`InputError` if this OpenCV cannot search, or has no such ``mode``."""
    if not hasattr(cv2, 'ximgproc'):
        raise InputError(
            'OpenCV lacks cv2.ximgproc (selective search): opencv-contrib-python must be the last OpenCV installed; '
            '`python -m ccop_mm.doctor` names the command'
        )
    if mode not in MODES:
        raise InputError(f'unknown search mode {mode!r}: choose one of {", ".join(MODES)}')


def propose(image, mode='fast'):
    """Searches one photo for boxes that may hold an object.

    OpenCV returns the boxes of several hierarchies with repetitions and in an order drawn by ``rand()``; the set of
    distinct boxes depends on the photo alone. So that set is returned, in ascending order of ``(x1, y1, x2, y2)``.

    Args:
        image (np.ndarray): (H, W, 3) uint8 in BGR order.
        mode (str): ``'fast'``, ``'quality'`` or ``'single'``, as OpenCV names its strategies.

    Returns:
        np.ndarray: (n, 4) float32 distinct xyxy boxes in pixels; x2 and y2 are exclusive. The whole photo,
        ``(0, 0, W, H)``, is always among them, for it ends every hierarchy.

    Raises:
        InputError: If this OpenCV has no ``ximgproc``, or the mode is unknown.
        ValueError: If the image is not (H, W, 3) uint8.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'expected a (H, W, 3) uint8 image, got {image.shape} {image.dtype}')
    require_search(mode)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    getattr(search, MODES[mode])()
    boxes = np.asarray(search.process()).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # (x, y, w, h) -> (x1, y1, x2, y2)
    # np.unique sorts rows by their first column, then the second, and so on.
    return np.unique(boxes, axis=0).astype(np.float32)
