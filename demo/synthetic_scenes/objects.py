"""The six object categories of the synthetic scenes.

Each category is a function of object coordinates ``u`` and ``v`` (float arrays of equal shape; the object fits into
about [-1, 1] and ``u`` runs along its length) and a random generator. It returns two arrays of that shape:

- ``depth``: positive inside the outline, increasing inwards at about the rate of the distance to the outline;
- ``pattern``: True where the second color is used.

Categories differ in outline and pattern, never in color.
"""

from collections.abc import Callable

import numpy as np

DepthAndPattern = tuple[np.ndarray, np.ndarray]

NUM_SPRINKLES = 26


def ball(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> DepthAndPattern:
    """A beach ball: curved sectors that meet off-center."""
    radius = np.hypot(u, v)
    angle = np.arctan2(v - 0.2, u - 0.3)
    return 0.97 - radius, np.cos(3 * angle + 1.1 * radius) > 0


def starfish(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> DepthAndPattern:
    """Five arms with dots along them."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    outline = 0.42 + 0.55 * (0.5 + 0.5 * np.cos(5 * angle)) ** 1.5
    across = ((angle * 5 / (2 * np.pi) + 0.5) % 1 - 0.5) * radius * 1.25
    along = ((radius / 0.17 + 0.5) % 1 - 0.5) * 0.17
    return outline - radius, np.hypot(across, along) < 0.055


def leaf(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> DepthAndPattern:
    """Two arcs that meet in points, with a midrib and slanted veins."""
    outline = 0.56 * (1 - 0.3 * u) * np.clip(1 - u**2, 0, None) ** 0.9
    vein = (u - 0.9 * np.abs(v)) / 0.3 % 1 < 0.22
    return outline - np.abs(v), vein | (np.abs(v) < 0.035)


def doughnut(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> DepthAndPattern:  # codespell:ignore
    """A ring with randomly placed sprinkles."""
    pattern = np.zeros(u.shape, bool)
    for _ in range(NUM_SPRINKLES):
        place, tilt = rng.uniform(0, 2 * np.pi), rng.uniform(0, np.pi)
        distance = rng.uniform(0.44, 0.88)
        x, y = u - distance * np.cos(place), v - distance * np.sin(place)
        along, across = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt)
        pattern |= (np.abs(along) < 0.085) & (np.abs(across) < 0.033)
    return 0.31 - np.abs(np.hypot(u, v) - 0.66), pattern


def crate(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> DepthAndPattern:
    """A square with a frame and a diagonal brace."""
    edge = np.maximum(np.abs(u), np.abs(v))
    return 0.8 - edge, (edge > 0.62) | (np.abs(u - v) < 0.13)


def fish(u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> DepthAndPattern:
    """An oval body with scales, a tail and an eye."""
    body = 0.35 * (1 - ((u - 0.2) / 0.76) ** 2 - (v / 0.5) ** 2)
    tail = np.minimum.reduce([-0.3 - u, u + 0.93, 0.07 - 0.75 * (u + 0.3) - np.abs(v)])
    column = u / 0.19
    row = v / 0.19 + 0.5 * (np.floor(column) % 2)
    scales = (np.abs(np.hypot(column % 1 - 1, row % 1 - 0.5) - 0.55) < 0.13) & (u > -0.4) & (u < 0.45)
    eye = np.abs(np.hypot(u - 0.66, v + 0.13) - 0.05) < 0.035
    return np.maximum(body, tail), scales | eye


KINDS: dict[str, Callable[..., DepthAndPattern]] = {
    kind.__name__: kind
    for kind in (ball, starfish, leaf, doughnut, crate, fish)  # codespell:ignore doughnut
}
