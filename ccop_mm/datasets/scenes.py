"""A small set of synthetic multi-object photos in COCO layout, so that every step can be tried without a download."""

import colorsys
import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle

from ccop_mm.datasets.scene_backgrounds import draw_background, draw_grain
from ccop_mm.datasets.scene_objects import KINDS
from ccop_mm.errors import InputError
from ccop_mm.fileio import atomic_write

# Scenes are drawn this many times larger and averaged down, so that outlines are smooth.
SUPERSAMPLING = 2
# Share of itself that an object must keep in sight: mild occlusion, and no object hidden by the sum of several.
MIN_VISIBLE = 0.7


def write_scenes(folder, num_train=96, num_val=48, size=(160, 208), seed=0):
    """Writes ``images/*.jpg``, ``annotations/instances_train.json`` and ``annotations/instances_val.json``.

    Each scene holds 2-6 objects of six classes, told apart by outline and pattern; position, scale, rotation, stretch,
    colors, material, light and background vary. Boxes and masks (RLE) are those of the pixels in sight. The same
    arguments give the same bytes, on one machine with one set of libraries. Existing files of these names are replaced,
    others stay; the annotations come last, so that a first run that is cut off leaves none that lack photos.

    Args:
        folder (str | Path): Where to write; made if missing.
        num_train (int): Number of scenes to train on, at least 1.
        num_val (int): Number of scenes to evaluate on, at least 1.
        size (tuple[int, int]): Height and width of a scene in pixels, at least 64 each.
        seed (int): Seed of everything drawn. Scene ``n`` of a split is the same however many scenes follow it.

    Returns:
        dict[str, Path]: The annotation files under ``'train'`` and ``'val'``.

    Raises:
        InputError: If a number or a size is too small.
    """
    if min(num_train, num_val) < 1 or min(size) < 64:
        raise InputError(f'scenes: need 1 scene and 64 px at least, got {num_train} + {num_val} scenes of {size} px')
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
            photo, kinds, masks = draw_scene(size, np.random.default_rng([seed, part, index]))
            file_name = f'{split}_{index:05d}.jpg'
            with atomic_write(folder / 'images' / file_name) as file:
                file.write(cv2.imencode('.jpg', photo, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
            add_annotations(dataset, first_id + index + 1, file_name, kinds, masks)
        datasets[split] = dataset
    paths = {}
    for split, dataset in datasets.items():
        paths[split] = folder / 'annotations' / f'instances_{split}.json'
        with atomic_write(paths[split], 'w') as file:
            json.dump(dataset, file)
    return paths


def add_annotations(dataset, image_id, file_name, kinds, masks):
    """Appends one scene to a COCO dictionary.

    Args:
        dataset (dict): With lists ``images`` and ``annotations``.
        image_id (int): Id of the scene, unique over both splits.
        file_name (str): Name of the photo below ``images/``.
        kinds (list[int]): The n objects' kinds, as indices into :data:`KINDS`.
        masks (np.ndarray): (n, h, w) bool, the pixels of each that are in sight.
    """
    height, width = masks.shape[1:]
    dataset['images'].append({'id': image_id, 'file_name': file_name, 'height': height, 'width': width})
    for number, (kind, mask) in enumerate(zip(kinds, masks, strict=True)):
        encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        dataset['annotations'].append(
            {
                # No scene holds more than six objects, so ten ids for each are enough.
                'id': 10 * image_id + number,
                'image_id': image_id,
                'category_id': kind + 1,
                'bbox': rle.toBbox(encoded).tolist(),
                'area': int(rle.area(encoded)),
                'segmentation': {'size': encoded['size'], 'counts': encoded['counts'].decode('ascii')},
                'iscrowd': 0,
            }
        )


def draw_scene(size, rng):
    """Draws one scene.

    Args:
        size (tuple[int, int]): Height and width in pixels.
        rng (np.random.Generator): Source of everything drawn.

    Returns:
        tuple[np.ndarray, list[int], np.ndarray]: The photo (h, w, 3) uint8 BGR; the n objects' kinds as indices into
        :data:`KINDS`, back to front; their masks (n, h, w) bool of the pixels in sight.
    """
    height, width = size
    canvas = draw_background((height * SUPERSAMPLING, width * SUPERSAMPLING), rng)
    owner = np.full(canvas.shape[:2], -1)
    used_colors = [canvas.mean(axis=(0, 1))]
    grain = draw_grain(canvas.shape[:2], rng)
    light = rng.uniform(0, 2 * np.pi)
    kinds, areas = [], []
    num_objects, attempts = rng.integers(2, 7), 0
    # A crowded scene may have no room for the last objects; the first two always find some.
    while len(kinds) < num_objects and (attempts < 60 or len(kinds) < 2):
        attempts += 1
        kind = int(rng.integers(len(KINDS)))
        window, x, y, depth, pattern = place_object(list(KINDS.values())[kind], canvas.shape[:2], rng)
        inside = depth > 0
        if not keeps_in_sight(owner[window], inside, owner, areas):
            continue
        colors = pick_colors(used_colors, rng)
        canvas[window] = paint_object(canvas[window], grain[window], x, y, depth, pattern, colors, light)
        owner[window][inside] = len(kinds)
        kinds.append(kind)
        areas.append(inside.sum())
        used_colors.append(colors[0])
    shrink = {'dsize': (width, height), 'interpolation': cv2.INTER_AREA}
    photo = cv2.resize(canvas, **shrink) + rng.normal(0, 2.5, (height, width, 3))  # sensor noise
    shares = [cv2.resize(np.float32(owner == number), **shrink) for number in range(len(kinds))]
    return np.clip(photo, 0, 255).astype(np.uint8), kinds, np.stack(shares) > 0.5


def place_object(kind, size, rng):
    """Draws one object's position, scale, rotation, stretch and outline.

    Args:
        kind (callable): A value of :data:`KINDS`.
        size (tuple[int, int]): Height and width of the canvas.
        rng (np.random.Generator): Source of all choices.

    Returns:
        tuple: ``window``, the slices of the canvas that hold the object and its shadow; ``x`` and ``y``, the window's
        coordinates in units of the object's radius from its center; ``depth`` and ``pattern`` as from ``kind``.
    """
    height, width = size
    radius = min(size) * rng.uniform(0.13, 0.27)
    center_x, center_y = (rng.uniform(0.75 * radius, full - 0.75 * radius) for full in (width, height))
    reach = 1.7 * radius  # the widest stretch of the longest outline, and the shadow beyond it
    window = tuple(
        slice(max(0, int(center - reach)), min(full, int(center + reach)))
        for center, full in ((center_y, height), (center_x, width))
    )
    y, x = np.mgrid[window].astype(np.float32)
    x, y = (x - center_x) / radius, (y - center_y) / radius
    angle = rng.uniform(0, 2 * np.pi)
    stretch_u, stretch_v = np.exp(rng.uniform(-0.15, 0.15, 2))
    u = (x * np.cos(angle) + y * np.sin(angle)) / stretch_u
    v = (y * np.cos(angle) - x * np.sin(angle)) / stretch_v
    return window, x, y, *kind(u, v, rng)


def keeps_in_sight(owner_window, inside, owner, areas):
    """Whether a new object neither hides too much of an earlier one nor covers too much of it with itself.

    Args:
        owner_window (np.ndarray): (a, b) int, the number of the object in sight at each pixel of the window, or -1.
        inside (np.ndarray): (a, b) bool, the new object.
        owner (np.ndarray): (h, w) int, as ``owner_window`` for the whole canvas.
        areas (list[int]): Pixels of each earlier object before anything was put over it.
    """
    hidden = owner_window[inside]
    if (hidden >= 0).sum() > (1 - MIN_VISIBLE) * inside.sum():
        return False
    return all(
        (owner == number).sum() - (hidden == number).sum() >= MIN_VISIBLE * area for number, area in enumerate(areas)
    )


def pick_colors(used, rng):
    """Two colors for an object: one far from all in ``used``, and a lighter or a darker one of its hue.

    Args:
        used (list): BGR colors (0..255) of the background and the earlier objects.
        rng (np.random.Generator): Source of all choices.

    Returns:
        tuple[np.ndarray, np.ndarray]: (3,) float BGR each.
    """

    def lab(colors):
        return cv2.cvtColor(np.float32(colors)[None].clip(0, 255) / 255, cv2.COLOR_BGR2LAB)[0]

    hsv = rng.uniform((0, 0.45, 0.6), (1, 0.85, 0.95), (5, 3))
    candidates = 255 * np.array([colorsys.hsv_to_rgb(*color)[::-1] for color in hsv])
    distances = np.linalg.norm(lab(candidates)[:, None] - lab(used)[None], axis=2)  # (5, len(used))
    base = candidates[distances.min(axis=1).argmax()]
    return base, base * 0.35 + 255 * 0.65 if rng.random() < 0.5 else base * 0.45


def paint_object(background, grain, x, y, depth, pattern, colors, light):
    """Paints an object with its shadow.

    Args:
        background (np.ndarray): (a, b, 3) float32, what lies behind.
        grain (np.ndarray): (a, b) float32 around 1, the roughness of the material.
        x, y (np.ndarray): (a, b) coordinates in units of the object's radius.
        depth, pattern (np.ndarray): (a, b), as the functions of :data:`KINDS` return them.
        colors (tuple[np.ndarray, np.ndarray]): Colors off and on the pattern.
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
    # A rounded rim (a quarter circle over the outer 0.28 of the radius) and more light on the side that faces it.
    rim = np.sqrt(1 - (1 - np.clip(depth / 0.28, 0, 1)) ** 2)
    shade = (0.6 + 0.4 * rim) * (1 - 0.22 * (x * fall_x + y * fall_y))
    gloss = 70 * np.exp(-((x + 0.4 * fall_x) ** 2 + (y + 0.4 * fall_y) ** 2) / 0.06)
    behind = background * (1 - 0.45 * shadow[..., None])
    return np.where(inside[..., None] > 0, color * (grain * shade)[..., None] + gloss[..., None], behind)
