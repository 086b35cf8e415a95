"""The boxes of one photo: selective search, by one of two engines that find the same boxes."""

import cv2
import numpy as np

from ccop_mm.errors import InputError

# Uijlings et al. (IJCV 2013): how many segmentations, colour spaces and similarities are combined.
MODES = {
    'fast': 'switchToSelectiveSearchFast',
    'quality': 'switchToSelectiveSearchQuality',
    'single': 'switchToSingleStrategy',
}


#: ccop_mm's own (:mod:`.selective_search`, compiled by numba) and the reference, which takes several times as long.
ENGINES = ('native', 'opencv')


def require_search(mode='fast', engine='native'):
    """Raises :class:`InputError` if the engine cannot run here, or there is no such ``mode`` or ``engine``.

    The native engine is compiled here if that was not done on this machine before, so that worker processes need not.
    """
    if mode not in MODES:
        raise InputError(f'unknown search mode {mode!r}: choose one of {", ".join(MODES)}')
    if engine not in ENGINES:
        raise InputError(f'unknown search engine {engine!r}: choose one of {", ".join(ENGINES)}')
    if engine == 'native':
        _native()
    elif not hasattr(cv2, 'ximgproc'):
        raise InputError(
            'OpenCV lacks cv2.ximgproc (selective search): opencv-contrib-python must be the last OpenCV installed; '
            '`python -m ccop_mm.doctor` names the command'
        )


def _native():
    """The native engine, imported when it is first needed: numba and its kernels take a moment."""
    from ccop_mm.proposals import selective_search

    return selective_search


def propose(image, mode='fast', engine='native'):
    """Searches one photo for boxes that may hold an object.

    OpenCV returns the boxes of several hierarchies in an order drawn by ``rand()``; the set of distinct boxes depends
    on the photo alone. So that set is returned, in ascending order of ``(x1, y1, x2, y2)``.

    Args:
        image (np.ndarray): (H, W, 3) uint8 in BGR order.
        mode (str): ``'fast'``, ``'quality'`` or ``'single'``, as OpenCV names its strategies.
        engine (str): ``'native'`` or ``'opencv'``.

    Returns:
        np.ndarray: (n, 4) float32 distinct xyxy boxes in pixels; x2 and y2 are exclusive. The whole photo,
        ``(0, 0, W, H)``, is always among them if it is at least two pixels wide and high, for it ends every hierarchy.

    Raises:
        InputError: As :func:`require_search`.
        ValueError: If the image is not (H, W, 3) uint8.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'expected a (H, W, 3) uint8 image, got {image.shape} {image.dtype}')
    require_search(mode, engine)
    if engine == 'native':
        return _native().search(image, mode).astype(np.float32)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    getattr(search, MODES[mode])()
    boxes = np.asarray(search.process()).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # (x, y, w, h) -> (x1, y1, x2, y2)
    # np.unique sorts rows by their first column, then the second, and so on.
    return np.unique(boxes, axis=0).astype(np.float32)
