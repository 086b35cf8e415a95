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
) -> dict[str, Tensor]:
    """Backbone feature and predicted embedding of every annotated box, crowds left out.

    A photo is resized until its short side is ``size``, normalized as the model's ``data_preprocessor`` does, and
    padded with zeros to multiples of 32. Only photos of one padded shape share a batch, so no result depends on
    ``batch_size`` or on the other photos. Boxes are clipped to the photo, and dropped if under 1 px wide or high.
    Photos are skipped that cannot be read or are not of the size that the annotations give. What is left out is logged.

    Args:
        model (nn.Module): A :class:`ccop_mm.models.CCOP`, or what has its ``backbone``, ``neck``, ``embed_objects`` and
            ``data_preprocessor``. It runs in eval mode and is left in the mode it was in.
        annotation_file (str | Path): A COCO json with boxes.
        image_root (str | Path): Folder that its file names are relative to.
        size (int): Short side in pixels; best the one that the network was trained at.
        batch_size (int): Photos a batch.
        device (torch.device | str, optional): Moves the model there; by default it stays where it is.
        stage (int): Index of the backbone stage to pool from; the last (C5) by default.

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
        model = _to_device(model, device)
    photos = read_annotated_photos(annotation_file, image_root)
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
    backbone, embedding = (torch.cat(parts) for parts in zip(*(rows[index] for index in kept), strict=True))
    labels = torch.from_numpy(np.concatenate([photos[index].labels for index in kept]))
    return {'backbone': backbone, 'embedding': embedding, 'labels': labels}


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


def _to_device(model: nn.Module, device: torch.device | str) -> nn.Module:
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


def _load(photo: AnnotatedPhoto, size: int) -> tuple[np.ndarray, Tensor] | None:
    """The photo resized, (h, w, 3) uint8 BGR, and its boxes (n, 4) to match; None, with a log line, if it is bad."""
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
    scale = size / min(height, width)
    new_width, new_height = round(width * scale), round(height * scale)
    boxes = torch.from_numpy(photo.boxes)
    return (
        mmcv.imresize(image, (new_width, new_height)),
        boxes * boxes.new_tensor([new_width / width, new_height / height] * 2),
    )


def _padded_shape(image: np.ndarray) -> tuple[int, int]:
    return tuple(-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in image.shape[:2])


def _embed(model: nn.Module, images: tuple, boxes: tuple, stage: int) -> list[tuple[Tensor, Tensor]]:
    """Backbone features (n, C) and embeddings (n, D) of each photo's n boxes, on the CPU."""
    device = next(model.parameters()).device
    inputs = torch.stack([_normalize(model.data_preprocessor, image, device) for image in images])  # (B, 3, H, W)
    counts = [len(part) for part in boxes]
    batch_index = torch.repeat_interleave(torch.arange(len(boxes)), torch.tensor(counts)).to(device)
    boxes = torch.cat(boxes).to(inputs)
    stages = model.backbone(inputs)
    # A RoIAlign without a bfloat16 kernel, and boxes that half precision would move: float32.
    features = stages[stage].float()
    rois = torch.cat([batch_index[:, None].to(boxes), boxes], dim=1)
    spatial_scale = features.shape[-1] / inputs.shape[-1]
    pooled = roi_align(features, rois, (7, 7), spatial_scale, 0, 'avg', True)  # (N, C, 7, 7)
    backbone = pooled.mean(dim=(2, 3))
    embedding = model.embed_objects(model.neck(stages), boxes, batch_index)
    return list(zip(backbone.cpu().split(counts), embedding.float().cpu().split(counts), strict=True))


def _normalize(preprocessor: nn.Module, image: np.ndarray, device: torch.device) -> Tensor:
    """The image (h, w, 3) as the preprocessor normalizes a training view, then padded with zeros: (3, H, W)."""
    tensor = torch.from_numpy(image).to(device).permute(2, 0, 1)  # (h, w, 3) -> (3, h, w)
    if preprocessor._channel_conversion:
        tensor = tensor[[2, 1, 0]]
    tensor = tensor.float()
    if preprocessor._enable_normalize:
        tensor = (tensor - preprocessor.mean) / preprocessor.std
    height, width = _padded_shape(image)
    return F.pad(tensor, (0, width - tensor.shape[2], 0, height - tensor.shape[1]))
