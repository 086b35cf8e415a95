"""Small synthetic images, and fixtures that provide them."""

import cv2
import numpy as np
import pytest


def make_scene(seed, height=72, width=96):
    """Creates a BGR image with colored rectangles and ellipses on a gradient, with some noise."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(40, 120, width)[None, :, None] * rng.uniform(0.6, 1.4, 3)
    image = np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8).copy()
    for _ in range(5):
        x, y = (int(v) for v in rng.integers(0, (width - 16, height - 16)))
        w, h = (int(v) for v in rng.integers(14, 36, 2))
        color = [int(v) for v in rng.integers(0, 256, 3)]
        if rng.random() < 0.5:
            cv2.rectangle(image, (x, y), (x + w, y + h), color, -1)
        else:
            cv2.ellipse(image, (x, y), (w // 2, h // 2), 0, 0, 360, color, -1)
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def scene():
    """``scene(seed, height=72, width=96)`` creates one image."""
    return make_scene


@pytest.fixture
def image_folder(tmp_path):
    """A folder of seven images, two of them in subfolders."""
    root = tmp_path / 'images'
    for seed in range(7):
        path = root / ('', 'a', 'a/b')[max(0, seed - 4)] / f'scene_{seed}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), make_scene(seed, 60 + 4 * seed, 80 + 3 * seed))
    return root
