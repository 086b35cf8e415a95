"""Generates a small set of multi-object images in COCO layout, so that every step runs without a download."""

import colorsys
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write
from synthetic_scenes.backgrounds import sample_background, sample_texture
from synthetic_scenes.objects import KINDS

#: Scenes are rendered this many times larger and downsampled by area, so that outlines are smooth.
SUPERSAMPLING = 2
#: Fraction of an object that must stay visible. It limits occlusion, including the joint occlusion by several objects.
MIN_VISIBLE = 0.7


def write_scenes(
    folder: str | Path, num_train: int = 96, num_val: int = 48, size: tuple[int, int] = (160, 208), seed: int = 0
) -> dict[str, Path]:
    """Writes ``images/*.jpg``, ``annotations/instances_train.json`` and ``annotations/instances_val.json``.

    Each scene contains 2 to 6 objects of six categories, which differ in outline and pattern. Position, scale,
    rotation, stretch, colors, texture, light and background vary. Boxes and masks (RLE) cover the visible pixels.
    Equal arguments give equal files on one machine with the same library versions. Existing files of the same names are
    replaced, others are kept. The annotation files are written last, so an interrupted first run leaves none behind.

    Args:
        folder (str | Path): Output folder, created if missing.
        num_train (int): Number of training scenes, at least 1.
        num_val (int): Number of validation scenes, at least 1.
        size (tuple[int, int]): Height and width of a scene in pixels, at least 64 each.
        seed (int): Random seed. Scene ``n`` of a split does not depend on the number of scenes.

    Returns:
        dict[str, Path]: Annotation files under the keys ``'train'`` and ``'val'``.

    Raises:
        InputError: A number or a size is too small.
    """
    if min(num_train, num_val) < 1 or min(size) < 64:
        raise InputError(
            f'synthetic scenes: got {num_train} training and {num_val} validation scenes of {size} px; use at least 1 '
            'scene each and 64 px per side'
        )
    folder = Path(folder)
    splits = [('train', num_train, 0), ('val', num_val, num_train)]
    datasets = {}
    for part, (split, count, first_id) in enumerate(splits):
        dataset = {
            'info': {'description': f'Synthetic scenes, {split}, seed {seed}'},
            'categories': [{'id': i, 'name': name} for i, name in enumerate(KINDS, 1)],
            'images': [],
            'annotations': [],
        }
        for index in range(count):
            image, kinds, masks = render_scene(size, np.random.default_rng([seed, part, index]))
            file_name = f'{split}_{index:05d}.jpg'
            with atomic_write(folder / 'images' / file_name) as file:
                file.write(cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
            add_annotations(dataset, first_id + index + 1, file_name, kinds, masks)
        datasets[split] = dataset
    paths = {}
    for split, dataset in datasets.items():
        paths[split] = folder / 'annotations' / f'instances_{split}.json'
        with atomic_write(paths[split], 'w') as file:
            json.dump(dataset, file)
    return paths


def add_annotations(dataset: dict, image_id: int, file_name: str, kinds: list[int], masks: np.ndarray) -> None:
    """Appends one scene to a COCO dictionary.

    Args:
        dataset (dict): COCO dictionary with the lists ``images`` and ``annotations``.
        image_id (int): Id of the scene, unique across both splits.
        file_name (str): File name below ``images/``.
        kinds (list[int]): Categories of the n objects, as indices into :data:`KINDS`.
        masks (np.ndarray): (n, h, w) bool, visible pixels of each object.
    """
    height, width = masks.shape[1:]
    dataset['images'].append({'id': image_id, 'file_name': file_name, 'height': height, 'width': width})
    for number, (kind, mask) in enumerate(zip(kinds, masks, strict=True)):
        encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        dataset['annotations'].append(
            {
                # A scene has at most six objects, so ten ids per scene are enough.
                'id': 10 * image_id + number,
                'image_id': image_id,
                'category_id': kind + 1,
                'bbox': rle.toBbox(encoded).tolist(),
                'area': int(rle.area(encoded)),
                'segmentation': {'size': encoded['size'], 'counts': encoded['counts'].decode('ascii')},
                'iscrowd': 0,
            }
        )


def render_scene(size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Renders one random scene.

    Args:
        size (tuple[int, int]): Height and width in pixels.
        rng (np.random.Generator): Random generator.

    Returns:
        tuple[np.ndarray, list[int], np.ndarray]: The image (h, w, 3) uint8 BGR; the categories of the n objects as
        indices into :data:`KINDS`, back to front; their masks (n, h, w) bool of the visible pixels.
    """
    height, width = size
    canvas = sample_background((height * SUPERSAMPLING, width * SUPERSAMPLING), rng)
    owner = np.full(canvas.shape[:2], -1)
    used_colors = [canvas.mean(axis=(0, 1))]
    texture = sample_texture(canvas.shape[:2], rng)
    light = rng.uniform(0, 2 * np.pi)
    kinds, areas = [], []
    num_objects, attempts = rng.integers(2, 7), 0
    # A crowded scene may have no room for the last objects; there is always room for the first two.
    while len(kinds) < num_objects and (attempts < 60 or len(kinds) < 2):
        attempts += 1
        kind = int(rng.integers(len(KINDS)))
        region, x, y, depth, pattern = place_object(list(KINDS.values())[kind], canvas.shape[:2], rng)
        inside = depth > 0
        if not leaves_objects_visible(owner[region], inside, owner, areas):
            continue
        colors = pick_colors(used_colors, rng)
        canvas[region] = paint_object(canvas[region], texture[region], x, y, depth, pattern, colors, light)
        owner[region][inside] = len(kinds)
        kinds.append(kind)
        areas.append(inside.sum())
        used_colors.append(colors[0])
    shrink = {'dsize': (width, height), 'interpolation': cv2.INTER_AREA}
    image = cv2.resize(canvas, **shrink) + rng.normal(0, 2.5, (height, width, 3))  # sensor noise
    coverage = [cv2.resize(np.float32(owner == number), **shrink) for number in range(len(kinds))]
    return np.clip(image, 0, 255).astype(np.uint8), kinds, np.stack(coverage) > 0.5


def place_object(
    kind: Callable[..., tuple[np.ndarray, np.ndarray]], size: tuple[int, int], rng: np.random.Generator
) -> tuple[tuple[slice, ...], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Samples the position, scale, rotation, stretch and outline of one object.

    Args:
        kind (Callable): A value of :data:`KINDS`.
        size (tuple[int, int]): Height and width of the canvas.
        rng (np.random.Generator): Random generator.

    Returns:
        tuple: ``region``, the slices of the canvas that contain the object and its shadow; ``x`` and ``y``, pixel
        coordinates in the region relative to the object's center, in units of its radius; ``depth`` and ``pattern`` as
        returned by ``kind``.
    """
    height, width = size
    radius = min(size) * rng.uniform(0.13, 0.27)
    center_x, center_y = (rng.uniform(0.75 * radius, full - 0.75 * radius) for full in (width, height))
    reach = 1.7 * radius  # fits the longest outline at the largest stretch, and its shadow
    region = tuple(
        slice(max(0, int(center - reach)), min(full, int(center + reach)))
        for center, full in ((center_y, height), (center_x, width))
    )
    y, x = np.mgrid[region].astype(np.float32)
    x, y = (x - center_x) / radius, (y - center_y) / radius
    angle = rng.uniform(0, 2 * np.pi)
    stretch_u, stretch_v = np.exp(rng.uniform(-0.15, 0.15, 2))
    u = (x * np.cos(angle) + y * np.sin(angle)) / stretch_u
    v = (y * np.cos(angle) - x * np.sin(angle)) / stretch_v
    return region, x, y, *kind(u, v, rng)


def leaves_objects_visible(owner_region: np.ndarray, inside: np.ndarray, owner: np.ndarray, areas: list[int]) -> bool:
    """Checks that a new object overlaps earlier objects little and leaves each of them visible.

    Args:
        owner_region (np.ndarray): (a, b) int, number of the visible object at each pixel of the new object's region,
            -1 for background.
        inside (np.ndarray): (a, b) bool, pixels of the new object.
        owner (np.ndarray): (h, w) int, like ``owner_region`` for the whole canvas.
        areas (list[int]): Area in pixels of each earlier object without occlusion.
    """
    hidden = owner_region[inside]
    if (hidden >= 0).sum() > (1 - MIN_VISIBLE) * inside.sum():
        return False
    return all(
        (owner == number).sum() - (hidden == number).sum() >= MIN_VISIBLE * area for number, area in enumerate(areas)
    )


def pick_colors(used: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Samples two colors for an object: one far from all ``used`` colors, and a lighter or darker one of the same hue.

    Args:
        used (list[np.ndarray]): BGR colors in [0, 255] of the background and the earlier objects.
        rng (np.random.Generator): Random generator.

    Returns:
        tuple[np.ndarray, np.ndarray]: Two (3,) float BGR colors.
    """

    def to_lab(colors):
        return cv2.cvtColor(np.float32(colors)[None].clip(0, 255) / 255, cv2.COLOR_BGR2LAB)[0]

    hsv = rng.uniform((0, 0.45, 0.6), (1, 0.85, 0.95), (5, 3))
    candidates = 255 * np.array([colorsys.hsv_to_rgb(*color)[::-1] for color in hsv])
    distances = np.linalg.norm(to_lab(candidates)[:, None] - to_lab(used)[None], axis=2)  # (5, len(used))
    base = candidates[distances.min(axis=1).argmax()]
    return base, base * 0.35 + 255 * 0.65 if rng.random() < 0.5 else base * 0.45


def paint_object(
    background: np.ndarray,
    texture: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    depth: np.ndarray,
    pattern: np.ndarray,
    colors: tuple[np.ndarray, np.ndarray],
    light: float,
) -> np.ndarray:
    """Paints an object and its shadow over a background.

    Args:
        background (np.ndarray): (a, b, 3) float32 background of the region.
        texture (np.ndarray): (a, b) float32 with a mean of about 1; the object is multiplied by it.
        x (np.ndarray): (a, b) horizontal coordinates in units of the object's radius.
        y (np.ndarray): (a, b) vertical coordinates in units of the object's radius.
        depth (np.ndarray): (a, b) depth inside the outline, as returned by the functions of :data:`KINDS`.
        pattern (np.ndarray): (a, b) bool pattern, as returned by the functions of :data:`KINDS`.
        colors (tuple[np.ndarray, np.ndarray]): Base color and pattern color.
        light (float): Direction in which shadows fall, in radians.

    Returns:
        np.ndarray: (a, b, 3) float32.
    """
    fall_x, fall_y = np.cos(light), np.sin(light)
    radius = 1 / (x[0, 1] - x[0, 0])  # in pixels
    inside = np.float32(depth > 0)
    shift = np.float32([[1, 0, 0.12 * radius * fall_x], [0, 1, 0.12 * radius * fall_y]])
    shadow = cv2.warpAffine(inside, shift, inside.shape[::-1])
    shadow = cv2.GaussianBlur(shadow, (0, 0), 0.06 * radius)
    color = np.where(pattern[..., None], colors[1], colors[0])
    # A rounded rim (a quarter circle over the outer 0.28 of the radius), brighter on the side that faces the light.
    rim = np.sqrt(1 - (1 - np.clip(depth / 0.28, 0, 1)) ** 2)
    shade = (0.6 + 0.4 * rim) * (1 - 0.22 * (x * fall_x + y * fall_y))
    gloss = 70 * np.exp(-((x + 0.4 * fall_x) ** 2 + (y + 0.4 * fall_y) ** 2) / 0.06)
    shaded_background = background * (1 - 0.45 * shadow[..., None])
    return np.where(inside[..., None] > 0, color * (texture * shade)[..., None] + gloss[..., None], shaded_background)
