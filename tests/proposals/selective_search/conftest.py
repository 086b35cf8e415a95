"""Parts of OpenCV's selective search, and images to compare them on."""

import cv2
import numpy as np
import pytest

SEGMENTATION = cv2.ximgproc.segmentation


def random_image(rng, side=60):
    """Creates an image of any aspect ratio with many exact ties: noise, a constant, stripes, a checkerboard, blocks."""
    height, width = (int(n) for n in rng.integers(1, side + 1, 2))
    if rng.random() < 0.1:  # very elongated
        height, width = int(rng.integers(1, 6)), int(rng.integers(side, 5 * side))
    if rng.random() < 0.5:
        height, width = width, height
    noise = rng.integers(0, 256, (height, width, 3))
    color, other = rng.integers(0, 256, (2, 3))
    rows, columns = (np.arange(n) // rng.integers(1, 9) % 2 for n in (height, width))
    kind = rng.integers(7)
    if kind < 3:
        mask = (np.zeros_like(rows)[:, None] + columns, rows[:, None] + 0 * columns, rows[:, None] ^ columns)[kind]
        image = np.where(mask[..., None], color, other)
    elif kind < 5:
        block = int(rng.integers(4, 20))
        small = noise[::block, ::block].astype(np.uint8)
        image = cv2.resize(small, (width, height), interpolation=(cv2.INTER_NEAREST, cv2.INTER_LINEAR)[kind - 3])
    elif kind == 5:
        image = np.clip(
            color + noise // rng.integers(8, 300), 0, 255
        )  # constant if the noise is divided by more than 255
    else:
        image = noise
    return np.ascontiguousarray(image.reshape(height, width, 3), dtype=np.uint8)


def opencv_strategy(measure):
    """Creates a strategy for weights of color, fill, texture and size."""
    names = [name for name, weight in zip(('Color', 'Fill', 'Texture', 'Size'), measure, strict=True) if weight]
    parts = [getattr(SEGMENTATION, f'createSelectiveSearchSegmentationStrategy{name}')() for name in names]
    return SEGMENTATION.createSelectiveSearchSegmentationStrategyMultiple(*parts) if len(parts) > 1 else parts[0]


@pytest.fixture
def images(scene):
    """HSV and gray versions of two scenes and of eight random images."""
    rng = np.random.default_rng(0)
    sources = [scene(0), scene(1, 150, 200), *(random_image(rng) for _ in range(8))]
    codes = (cv2.COLOR_BGR2HSV, cv2.COLOR_BGR2GRAY)
    return [cv2.cvtColor(image, code) for image in sources for code in codes]
