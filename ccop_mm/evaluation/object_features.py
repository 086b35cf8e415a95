"""Features of annotated objects: what the backbone sees in a box, and the embedding that the model predicts for it."""

import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmcv.ops import roi_align
from mmengine.logging import print_log
from torch import Tensor, nn

from ccop_mm.errors import InputError
from ccop_mm.evaluation.annotated_photos import AnnotatedPhoto, read_annotated_photos
from ccop_mm.evaluation.feature_maps import PYRAMID, STAGES, feature_maps, normalize_views
from ccop_mm.proposals import BadPhoto, load_photo

#: Sides of the network's input are multiples of this, the stride of C5, so that every stage's stride is exact.
SIZE_DIVISOR = 32


def extract_object_features(
    model: nn.Module,
    annotation_file: str | Path,
    image_root: str | Path,
    size: int = 224,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    stage: int = -1,
    max_objects: int | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Backbone feature and predicted embedding of every annotated box, crowds left out.

    A photo is resized until its short side is ``size``, normalized as the model's ``data_preprocessor`` does, and
    padded with zeros to multiples of 32. Only photos of one padded shape share a batch, so no result depends on
    ``batch_size`` or on the other photos. Boxes are clipped to the photo, and dropped if under 1 px wide or high.
    Photos are skipped that cannot be read or are not of the size that the annotations give. What is left out is logged.

    Args:
        model (nn.Module): A :class:`ccop_mm.models.CCOP`, or what has its ``backbone`` and ``data_preprocessor``
            (mmselfsup's MoCo); without its ``neck`` and ``embed_objects`` there is no embedding. It runs in eval mode
            and is left in the mode it was in.
        annotation_file (str | Path): A COCO json with boxes.
        image_root (str | Path): Folder that its file names are relative to.
        size (int): Short side in pixels; best the one that the network was trained at.
        batch_size (int): Photos a batch.
        device (torch.device | str, optional): Moves the model there; by default it stays where it is.
        stage (int): Index of the backbone stage to pool from; the last (C5) by default.
        max_objects (int, optional): Use a random subset of the photos with about so many objects: memory is 4 (C + D)
            bytes an object, 0.9 GB for 100,000 of a ResNet-50.
        seed (int): Of that subset.

    Returns:
        dict[str, Tensor]: On the CPU, a row per box, in the order of the file's images and of their annotations:
        ``backbone (N, C)``, RoIAlign 7x7 averaged; ``embedding (N, D)``; ``labels (N,)``, the category ids.

    Raises:
        InputError: If the file or the folder is missing or not what it should be, no box is left, ``size`` or
            ``batch_size`` is below 1, or there is no such device.
    """
    if min(size, batch_size) < 1:
        raise InputError(f'size and batch size must be at least 1, got {size} and {batch_size}')
    if device is not None:
        model = to_device(model, device)
    photos = _limit(read_annotated_photos(annotation_file, image_root), max_objects, seed)
    rows = {}
    with inference_mode(model):
        for batch in _batches(photos, size, batch_size):
            indices, images, boxes = zip(*batch, strict=True)
            features = _embed(model, images, boxes, stage)
            rows.update(zip(indices, features, strict=True))
    if len(rows) < len(photos):
        print_log(f'{len(photos) - len(rows)} of {len(photos)} photos skipped', 'current', logging.WARNING)
    if not rows:
        raise InputError(f'{annotation_file}: none of its photos could be read from {image_root}')
    kept = sorted(rows)
    labels = torch.from_numpy(np.concatenate([photos[index].labels for index in kept]))
    # Popped one by one: a photo's own features are gone when the joined ones are there.
    parts = [rows.pop(index) for index in kept]
    features = {name: torch.cat([part.pop(name) for part in parts]) for name in list(parts[0])}
    return {**features, 'labels': labels}


def _limit(photos: list[AnnotatedPhoto], max_objects: int | None, seed: int) -> list[AnnotatedPhoto]:
    """Photos, drawn at random and in their order, whose objects are just as many as wanted, or all."""
    if max_objects is None or sum(len(photo.labels) for photo in photos) <= max_objects:
        return photos
    order = np.random.default_rng(seed).permutation(len(photos))
    total = np.cumsum([len(photos[index].labels) for index in order])
    return [photos[index] for index in np.sort(order[: np.searchsorted(total, max_objects) + 1])]


@contextlib.contextmanager
def inference_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is back in the mode it was in, frozen ones too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def to_device(model: nn.Module, device: torch.device | str) -> nn.Module:
    """The model on a device.

    Raises:
        InputError: If there is no such device.
    """
    try:
        return model.to(device)
    except (AssertionError, RuntimeError) as error:  # torch raises the first where it was built without CUDA
        raise InputError(f'device {device} cannot be used: {str(error).splitlines()[0]}') from None


def _batches(photos: list[AnnotatedPhoto], size: int, batch_size: int) -> Iterator[list[tuple]]:
    """Lists of at most ``batch_size`` (index, resized image, resized boxes), all of one padded shape."""
    waiting = defaultdict(list)
    for index, photo in enumerate(photos):
        loaded = _load(photo, size)
        if loaded is None:
            continue
        image, boxes = loaded
        shape = _padded_shape(image)
        waiting[shape].append((index, image, boxes))
        if len(waiting[shape]) == batch_size:
            yield waiting.pop(shape)
    yield from waiting.values()


def read_pixels(photo: AnnotatedPhoto) -> np.ndarray | None:
    """The photo, (h, w, 3) uint8 BGR; None, with a log line, if it cannot be read or has not the annotated size."""
    try:
        image, _ = load_photo(photo.path)
    except BadPhoto as reason:
        print_log(f'skipped {photo.path}: {reason}', 'current', logging.WARNING)
        return None
    height, width = image.shape[:2]
    if (height, width) != photo.shape:
        wanted = f'{photo.shape[1]} x {photo.shape[0]}'
        print_log(f'skipped {photo.path}: {width} x {height} px, annotated as {wanted}', 'current', logging.WARNING)
        return None
    return image


def _load(photo: AnnotatedPhoto, size: int) -> tuple[np.ndarray, Tensor] | None:
    """The photo resized, (h, w, 3) uint8 BGR, and its boxes (n, 4) to match; None if it is bad."""
    image = read_pixels(photo)
    if image is None:
        return None
    height, width = image.shape[:2]
    scale = size / min(height, width)
    new_width, new_height = round(width * scale), round(height * scale)
    boxes = torch.from_numpy(photo.boxes)
    return (
        mmcv.imresize(image, (new_width, new_height)),
        boxes * boxes.new_tensor([new_width / width, new_height / height] * 2),
    )


def _padded_shape(image: np.ndarray) -> tuple[int, int]:
    return tuple(-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in image.shape[:2])


def _embed(model: nn.Module, images: tuple, boxes: tuple, stage: int) -> list[dict[str, Tensor]]:
    """``backbone (n, C)`` and, if the model has them, ``embedding (n, D)`` of each photo's n boxes, on the CPU."""
    device = next(model.parameters()).device
    inputs = torch.stack([_normalize(model.data_preprocessor, image, device) for image in images])  # (B, 3, H, W)
    counts = [len(part) for part in boxes]
    batch_index = torch.repeat_interleave(torch.arange(len(boxes)), torch.tensor(counts)).to(device)
    boxes = torch.cat(boxes).to(inputs)
    maps = feature_maps(model, inputs)
    features = maps[STAGES[stage]]
    rois = torch.cat([batch_index[:, None].to(boxes), boxes], dim=1)
    spatial_scale = features.shape[-1] / inputs.shape[-1]
    pooled = roi_align(features, rois, (7, 7), spatial_scale, 0, 'avg', True)  # (N, C, 7, 7)
    found = {'backbone': pooled.mean(dim=(2, 3))}
    if hasattr(model, 'embed_objects'):
        found['embedding'] = model.embed_objects(tuple(maps[name] for name in PYRAMID), boxes, batch_index).float()
    split = {name: rows.cpu().split(counts) for name, rows in found.items()}
    # clone: a slice would keep the whole batch's rows alive
    return [{name: rows[index].clone() for name, rows in split.items()} for index in range(len(counts))]


def _normalize(preprocessor: nn.Module, image: np.ndarray, device: torch.device) -> Tensor:
    """The image (h, w, 3) as the preprocessor normalizes a training view, then padded with zeros: (3, H, W)."""
    tensor = normalize_views(preprocessor, [image], device)[0]
    height, width = _padded_shape(image)
    return F.pad(tensor, (0, width - tensor.shape[2], 0, height - tensor.shape[1]))
