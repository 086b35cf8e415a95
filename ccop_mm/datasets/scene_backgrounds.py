"""What lies behind the objects of the synthetic scenes: photos that ship inside scikit-image, or noise without it."""

import functools
import importlib.util
from pathlib import Path

import cv2
import numpy as np

# Surface: file in scikit-image's data folder, region used, and the colors (BGR) that its darkest and its brightest grey
# become; None keeps a color photo as it is. All are part of the wheel, CC0 or in the public domain, and none shows an
# object that the annotations would have to name: of coffee.png the table beside the cup is used.
SURFACES = {
    'grass': ('grass.png', np.s_[:, :], ((15, 50, 20), (110, 215, 170))),
    'brick': ('brick.png', np.s_[:, :], ((50, 55, 95), (150, 170, 215))),
    'gravel': ('gravel.png', np.s_[:, :], ((35, 40, 45), (200, 215, 225))),
    'wood': ('coffee.png', np.s_[:, 488:], None),
    'moon': ('moon.png', np.s_[:330, :], ((75, 60, 55), (225, 220, 210))),
    'space': ('hubble_deep_field.jpg', np.s_[:, :], None),
}


def installed_photos():
    """The folder with scikit-image's photos, or None where it is not installed. Nothing is ever downloaded."""
    spec = importlib.util.find_spec('skimage')
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / 'data'


def fractal_noise(size, rng):
    """Grey noise with equal energy per octave, the stand-in for a photo.

    Args:
        size (tuple[int, int]): Height and width in pixels.
        rng (np.random.Generator): Source of the noise.

    Returns:
        np.ndarray: (h, w) float32 in [0, 1].
    """
    height, width = size
    noise = np.zeros(size, np.float32)
    for cells in (4, 8, 16, 32, 64, 128):
        grid = rng.random((cells, cells), np.float32)
        noise += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return (noise - noise.min()) / np.ptp(noise)


def surface(name, folder):
    """One background surface.

    Args:
        name (str): A key of :data:`SURFACES`.
        folder (Path | None): Where scikit-image's photos lie. Without it, or without the file, noise takes their place.

    Returns:
        np.ndarray: (h, w, 3) float32, BGR in 0..255.
    """
    file, region, tint = SURFACES[name]
    photo = cv2.imread(str(folder / file)) if folder is not None and (folder / file).is_file() else None
    if photo is not None and tint is None:
        photo = photo[region].astype(np.float32)
        # An upright strip is mirrored, or a scene would show too little of its height.
        upright = photo.shape[1] < photo.shape[0]
        return np.concatenate([photo, photo[:, ::-1]], axis=1) if upright else photo
    if photo is None:
        grey = fractal_noise((384, 384), np.random.default_rng(list(SURFACES).index(name)))
        tint = tint or ((25, 45, 80), (90, 130, 190))
    else:
        grey = photo[region][..., 0].astype(np.float32)
        grey = (grey - grey.min()) / np.ptp(grey)
    dark, bright = np.array(tint, np.float32)
    return dark + (bright - dark) * grey[..., None]


@functools.lru_cache(maxsize=2)
def surfaces(folder):
    """All of :data:`SURFACES` as a list of (h, w, 3) float32 images; kept in memory, because every scene uses one."""
    return [surface(name, folder) for name in SURFACES]


def draw_background(size, rng):
    """A random region of a random surface, at a random zoom and brightness, with softened contrast.

    Args:
        size (tuple[int, int]): Height and width in pixels.
        rng (np.random.Generator): Source of all choices.

    Returns:
        np.ndarray: (h, w, 3) float32, BGR around 0..255.
    """
    height, width = size
    choices = surfaces(installed_photos())
    image = choices[rng.integers(len(choices))]
    scale = min(image.shape[0] / height, image.shape[1] / width) * rng.uniform(0.6, 1.0)
    region = int(height * scale), int(width * scale)
    top, left = (rng.integers(full - part + 1) for full, part in zip(image.shape[:2], region, strict=True))
    image = image[top : top + region[0], left : left + region[1]]
    if rng.random() < 0.5:
        image = image[:, ::-1]
    image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_CUBIC)
    # As behind objects in focus: less contrast and a little blur, so that the objects and not the gravel stand out.
    mean = image.mean(axis=(0, 1))
    image = mean + 0.7 * (image - mean)
    return cv2.GaussianBlur(image, (0, 0), height / 250) * np.float32(rng.uniform(0.8, 1.1))


def draw_grain(size, rng):
    """The fine structure of a random surface without its color, a material to multiply objects with.

    Args:
        size (tuple[int, int]): Height and width in pixels.
        rng (np.random.Generator): Source of all choices.

    Returns:
        np.ndarray: (h, w) float32 around 1.
    """
    grey = draw_background(size, rng).mean(axis=2)
    relief = grey / cv2.GaussianBlur(grey, (0, 0), size[0] / 40) - 1
    return 1 + 0.6 * relief.clip(-0.5, 0.5)
