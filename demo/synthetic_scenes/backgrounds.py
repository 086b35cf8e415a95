"""Backgrounds of the synthetic scenes: images from the scikit-image wheel, or noise if it is not installed."""

import functools
import importlib.util
from pathlib import Path

import cv2
import numpy as np

# Surface: file in scikit-image's data folder, region to use, and the BGR colors that replace its darkest and brightest
# gray level (None: keep the colors of the image). All files are part of the wheel, are CC0 or in the public domain, and
# show no object that the annotations would have to include. Of coffee.png only the table next to the cup is used.
SURFACES = {
    'grass': ('grass.png', np.s_[:, :], ((15, 50, 20), (110, 215, 170))),
    'brick': ('brick.png', np.s_[:, :], ((50, 55, 95), (150, 170, 215))),
    'gravel': ('gravel.png', np.s_[:, :], ((35, 40, 45), (200, 215, 225))),
    'wood': ('coffee.png', np.s_[:, 488:], None),
    'moon': ('moon.png', np.s_[:330, :], ((75, 60, 55), (225, 220, 210))),
    'space': ('hubble_deep_field.jpg', np.s_[:, :], None),
}


def installed_images() -> Path | None:
    """Returns the folder of scikit-image's sample images, or None if it is not installed. Downloads nothing."""
    spec = importlib.util.find_spec('skimage')
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / 'data'


def fractal_noise(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Generates gray noise with equal energy per octave, the substitute for a missing image.

    Args:
        size (tuple[int, int]): Height and width in pixels.
        rng (np.random.Generator): Random generator.

    Returns:
        np.ndarray: (h, w) float32 in [0, 1].
    """
    height, width = size
    noise = np.zeros(size, np.float32)
    for cells in (4, 8, 16, 32, 64, 128):
        grid = rng.random((cells, cells), np.float32)
        noise += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return (noise - noise.min()) / np.ptp(noise)


def surface(name: str, folder: Path | None) -> np.ndarray:
    """Loads one background surface.

    Args:
        name (str): A key of :data:`SURFACES`.
        folder (Path | None): Folder of scikit-image's sample images. If it is None or the file is missing, noise is
            used instead.

    Returns:
        np.ndarray: (h, w, 3) float32, BGR in [0, 255].
    """
    file, region, tint = SURFACES[name]
    image = cv2.imread(str(folder / file)) if folder is not None and (folder / file).is_file() else None
    if image is not None and tint is None:
        image = image[region].astype(np.float32)
        # A portrait image is extended by its mirror image, so that landscape crops of it are not too flat.
        is_portrait = image.shape[1] < image.shape[0]
        return np.concatenate([image, image[:, ::-1]], axis=1) if is_portrait else image
    if image is None:
        gray = fractal_noise((384, 384), np.random.default_rng(list(SURFACES).index(name)))
        tint = tint or ((25, 45, 80), (90, 130, 190))
    else:
        gray = image[region][..., 0].astype(np.float32)
        gray = (gray - gray.min()) / np.ptp(gray)
    dark, bright = np.array(tint, np.float32)
    return dark + (bright - dark) * gray[..., None]


@functools.lru_cache(maxsize=2)
def surfaces(folder: Path | None) -> list[np.ndarray]:
    """Loads all :data:`SURFACES` as (h, w, 3) float32 images; cached because every scene uses one of them."""
    return [surface(name, folder) for name in SURFACES]


def sample_background(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Samples a region of a random surface with random zoom and brightness, and reduces its contrast.

    Args:
        size (tuple[int, int]): Height and width in pixels.
        rng (np.random.Generator): Random generator.

    Returns:
        np.ndarray: (h, w, 3) float32, BGR, roughly in [0, 255].
    """
    height, width = size
    choices = surfaces(installed_images())
    image = choices[rng.integers(len(choices))]
    scale = min(image.shape[0] / height, image.shape[1] / width) * rng.uniform(0.6, 1.0)
    region = int(height * scale), int(width * scale)
    top, left = (rng.integers(full - part + 1) for full, part in zip(image.shape[:2], region, strict=True))
    image = image[top : top + region[0], left : left + region[1]]
    if rng.random() < 0.5:
        image = image[:, ::-1]
    image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_CUBIC)
    # Lower contrast and slight blur, as behind objects in focus: otherwise selective search finds gravel, not objects.
    mean = image.mean(axis=(0, 1))
    image = mean + 0.7 * (image - mean)
    return cv2.GaussianBlur(image, (0, 0), height / 250) * np.float32(rng.uniform(0.8, 1.1))


def sample_texture(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Samples the fine structure of a random surface without its color; objects are multiplied by it.

    Args:
        size (tuple[int, int]): Height and width in pixels.
        rng (np.random.Generator): Random generator.

    Returns:
        np.ndarray: (h, w) float32 with a mean of about 1.
    """
    gray = sample_background(size, rng).mean(axis=2)
    relief = gray / cv2.GaussianBlur(gray, (0, 0), size[0] / 40) - 1
    return 1 + 0.6 * relief.clip(-0.5, 0.5)
