"""Features of annotated objects: pooled backbone features and the object embeddings of the model."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmcv.ops import roi_align
from mmengine.logging import print_log
from torch import Tensor, nn

from ccop_mm.evaluation.feature_maps import feature_maps, normalize_views
from ccop_mm.utils.coco_json import AnnotatedImage, read_annotated_images
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import UnreadableImageError, load_image
from ccop_mm.utils.model import inference_mode, to_device

#: Height and width of the network input are padded to multiples of the stride of C5.
SIZE_DIVISOR = 32


def extract_object_features(
    model: nn.Module,
    annotation_file: str | Path,
    image_root: str | Path,
    size: int = 224,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    stage: int | str = -1,
    max_objects: int | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Extracts the backbone feature and the object embedding of every annotated box, excluding crowds.

    Each image is resized so that its short side is ``size``, normalized by the model's ``data_preprocessor``, and
    zero-padded to multiples of 32. A batch contains only images of one padded shape, so the result does not depend on
    ``batch_size`` or on the other images. Boxes are clipped to the image and dropped if less than 1 px wide or high.
    Images that cannot be read or whose size differs from the annotated size are skipped. Skipped images and dropped
    boxes are logged.

    Args:
        model (nn.Module): A :class:`ccop_mm.models.CCOP`, or any model with a ``backbone`` and a ``data_preprocessor``,
            such as mmselfsup's MoCo. Embeddings require ``neck`` and ``embed_objects``. The model runs in eval mode and
            is restored to its previous mode.
        annotation_file (str | Path): COCO annotation file with boxes.
        image_root (str | Path): Root folder of the annotated images.
        size (int): Short side of the images in pixels. The training resolution gives the best results.
        batch_size (int): Images per batch.
        device (torch.device | str, optional): Device to move the model to. By default the model is not moved.
        stage (int | str): Backbone stage to pool from: its name, such as ``'C4'``, or its index among the stages of the
            model. The default is the last stage.
        max_objects (int, optional): Use a random subset of the images with about this many objects. Memory is
            4 (C + D) bytes per object: 0.9 GB for 100,000 objects of a ResNet-50.
        seed (int): Random seed of the subset.

    Returns:
        dict[str, Tensor]: CPU tensors with one row per box, in the order of the images and annotations in the file:
        ``backbone (N, C)``, the mean of a 7x7 RoIAlign; ``embedding (N, D)``; ``labels (N,)``, the category ids.

    Raises:
        InputError: A file or directory is missing or invalid, no box is left, ``size`` or ``batch_size`` is below 1, or
            the device is not available.

    Example:
        >>> from ccop_mm import apis
        >>> features = apis.extract_object_features(model, 'instances.json', 'my_images', size=64)
        >>> {name: tuple(value.shape) for name, value in features.items()}
        {'backbone': (16, 64), 'embedding': (16, 128), 'labels': (16,)}
    """
    if min(size, batch_size) < 1:
        raise InputError(f'size and batch size must be at least 1, got {size} and {batch_size}')
    if device is not None:
        model = to_device(model, device)
    images = _limit_objects(read_annotated_images(annotation_file, image_root), max_objects, seed)
    rows = {}
    with inference_mode(model):
        for batch in _batches(images, size, batch_size):
            indices, pixels, boxes = zip(*batch, strict=True)
            rows.update(zip(indices, _extract_batch(model, pixels, boxes, stage), strict=True))
    if len(rows) < len(images):
        print_log(f'{len(images) - len(rows)} of {len(images)} images skipped', 'current', logging.WARNING)
    if not rows:
        raise InputError(f'{annotation_file}: none of its images could be read from {image_root}')
    kept = sorted(rows)
    labels = torch.from_numpy(np.concatenate([images[index].labels for index in kept]))
    # Popping frees the rows of single images while the concatenated tensors are built.
    parts = [rows.pop(index) for index in kept]
    features = {name: torch.cat([part.pop(name) for part in parts]) for name in list(parts[0])}
    return {**features, 'labels': labels}


def _limit_objects(images: list[AnnotatedImage], max_objects: int | None, seed: int) -> list[AnnotatedImage]:
    """Samples images, keeping their order, until they contain at least ``max_objects`` objects."""
    if max_objects is None or sum(len(image.labels) for image in images) <= max_objects:
        return images
    order = np.random.default_rng(seed).permutation(len(images))
    total = np.cumsum([len(images[index].labels) for index in order])
    return [images[index] for index in np.sort(order[: np.searchsorted(total, max_objects) + 1])]


def _batches(
    images: list[AnnotatedImage], size: int, batch_size: int
) -> Iterator[list[tuple[int, np.ndarray, Tensor]]]:
    """Yields lists of up to ``batch_size`` (index, resized image, resized boxes) with one padded shape per list."""
    pending = defaultdict(list)
    for index, annotated in enumerate(images):
        loaded = _load_resized(annotated, size)
        if loaded is None:
            continue
        image, boxes = loaded
        shape = _padded_shape(image)
        pending[shape].append((index, image, boxes))
        if len(pending[shape]) == batch_size:
            yield pending.pop(shape)
    yield from pending.values()


def load_annotated_image(annotated: AnnotatedImage) -> np.ndarray | None:
    """Loads an annotated image.

    Returns:
        np.ndarray | None: (h, w, 3) uint8 BGR; None, after a log message, if the file cannot be read or its size
        differs from the annotated size.
    """
    try:
        image, _ = load_image(annotated.path)
    except UnreadableImageError as reason:
        print_log(f'skipped {annotated.path}: {reason}', 'current', logging.WARNING)
        return None
    height, width = image.shape[:2]
    if (height, width) != annotated.shape:
        expected = f'{annotated.shape[1]} x {annotated.shape[0]}'
        print_log(
            f'skipped {annotated.path}: {width} x {height} px, but annotated as {expected}', 'current', logging.WARNING
        )
        return None
    return image


def _load_resized(annotated: AnnotatedImage, size: int) -> tuple[np.ndarray, Tensor] | None:
    """Loads an image and resizes it with its boxes: (h, w, 3) uint8 BGR, (n, 4); None if it must be skipped."""
    image = load_annotated_image(annotated)
    if image is None:
        return None
    height, width = image.shape[:2]
    scale = size / min(height, width)
    new_width, new_height = round(width * scale), round(height * scale)
    boxes = torch.from_numpy(annotated.boxes)
    return (
        mmcv.imresize(image, (new_width, new_height)),
        boxes * boxes.new_tensor([new_width / width, new_height / height] * 2),
    )


def _padded_shape(image: np.ndarray) -> tuple[int, ...]:
    return tuple(-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in image.shape[:2])


def _extract_batch(
    model: nn.Module, images: Sequence[np.ndarray], boxes: Sequence[Tensor], stage: int | str
) -> list[dict[str, Tensor]]:
    """Returns ``backbone (n, C)`` and, if supported, ``embedding (n, D)`` on the CPU for each image with n boxes."""
    device = next(model.parameters()).device
    inputs = torch.stack([_normalize_and_pad(model.data_preprocessor, image, device) for image in images])
    counts = [len(part) for part in boxes]
    batch_index = torch.repeat_interleave(torch.arange(len(boxes)), torch.tensor(counts)).to(device)
    all_boxes = torch.cat(list(boxes)).to(inputs)  # (N, 4)
    maps = feature_maps(model, inputs)
    stage_map = maps[_find_stage(list(maps), stage)]
    rois = torch.cat([batch_index[:, None].to(all_boxes), all_boxes], dim=1)
    spatial_scale = stage_map.shape[-1] / inputs.shape[-1]
    pooled = roi_align(stage_map, rois, (7, 7), spatial_scale, 0, 'avg', True)  # (N, C, 7, 7)
    features = {'backbone': pooled.mean(dim=(2, 3))}
    if hasattr(model, 'embed_objects'):
        project = getattr(model, 'level_projector', tuple)
        pyramid = project([part for name, part in maps.items() if name.startswith('P')])
        features['embedding'] = model.embed_objects(pyramid, all_boxes, batch_index).float()
    split = {name: rows.cpu().split(counts) for name, rows in features.items()}
    # clone, because a slice would keep the rows of the whole batch in memory.
    return [{name: rows[index].clone() for name, rows in split.items()} for index in range(len(counts))]


def _find_stage(levels: Sequence[str], stage: int | str) -> str:
    """Returns the name of a backbone stage.

    Raises:
        InputError: The model has no such stage.
    """
    stages = [level for level in levels if level.startswith('C')]
    if stage in stages:
        return str(stage)
    if isinstance(stage, int) and -len(stages) <= stage < len(stages):
        return stages[stage]
    raise InputError(f'the backbone has no stage {stage}; its stages are {", ".join(stages)}')


def _normalize_and_pad(preprocessor: nn.Module, image: np.ndarray, device: torch.device) -> Tensor:
    """Normalizes an image (h, w, 3) and zero-pads it to multiples of :data:`SIZE_DIVISOR`: (3, H, W)."""
    tensor = normalize_views(preprocessor, [image], device)[0]
    height, width = _padded_shape(image)
    return F.pad(tensor, (0, width - tensor.shape[2], 0, height - tensor.shape[1]))
