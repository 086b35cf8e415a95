"""Measures the pointing game accuracy of a model on annotated images, with the same views for every model."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmselfsup.registry import TRANSFORMS
from torch import Tensor, nn

from ccop_mm.datasets.sampler import SampleKey, seeded_from
from ccop_mm.evaluation.feature_maps import STRIDES, feature_maps, normalize_views
from ccop_mm.evaluation.object_features import load_annotated_image
from ccop_mm.evaluation.pointing_game import FILE_KEYS, PointingResult, box_similarity, cells_inside, pointing_hits
from ccop_mm.utils import boxes as box_ops
from ccop_mm.utils.coco_json import AnnotatedImage, read_annotated_images
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.model import inference_mode, to_device

#: C2 is excluded: no detection head reads it, and its features describe little more than color.
LEVELS = ('C3', 'C4', 'C5', 'P2', 'P3', 'P4', 'P5')
#: Default limit of a box's area relative to the view; almost any point hits a larger object.
MAX_AREA_FRACTION = 0.4


@dataclass
class ObjectViews:
    """Two views of an image.

    Attributes:
        images (tuple): Query and key view, each (h, w, 3) uint8 BGR.
        boxes (tuple): Boxes in the query and key view, each (n, 4) xyxy in pixels; row i is the same object in both.
        object_index (Tensor): (n,), index of each row's object among those of the image.
    """

    images: tuple[np.ndarray, np.ndarray]
    boxes: tuple[Tensor, Tensor]
    object_index: Tensor


class ViewSampler:
    """Samples two views of an image and its annotated boxes with MoCo v2's augmentation, as in pre-training.

    The augmentation is fixed rather than read from a config, so that results of different configs are comparable.

    Args:
        size (int): Side of the views in pixels.
        seed (int): Random seed. The views depend on the seed, the index of the image and the repeat only.
    """

    def __init__(self, size: int = 224, seed: int = 0) -> None:
        self.seed = seed
        jitter = dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
        gray = dict(type='RandomGrayscale', prob=0.2, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989))
        transforms = [
            dict(type='ObjectResizedCrop', size=size, scale=(0.2, 1.0)),
            dict(type='RandomApply', transforms=[jitter], prob=0.8),
            gray,
            dict(type='RandomGaussianBlur', sigma_min=0.1, sigma_max=2.0, prob=0.5),
            dict(type='ObjectFlip', prob=0.5),
        ]
        with DefaultScope.overwrite_default_scope('mmselfsup'):
            self._transform = Compose([TRANSFORMS.build(transform) for transform in transforms])

    def sample(self, image: np.ndarray, boxes: np.ndarray, index: int, repeat: int = 0) -> ObjectViews:
        """Samples two views; equal arguments give equal views.

        Args:
            image (np.ndarray): (h, w, 3) uint8 BGR.
            boxes (np.ndarray): (n, 4) float32 xyxy in pixels.
            index (int): Index of the image in the dataset.
            repeat (int): Index of the pair of views.

        Returns:
            ObjectViews: The views and the boxes that are usable in both.
        """
        results = dict(
            img=image, img_shape=image.shape[:2], proposals=boxes, proposal_ids=np.arange(len(boxes), dtype=np.int64)
        )
        with seeded_from(SampleKey(self.seed, repeat, index)):
            views = [self._transform(dict(results)) for _ in range(2)]
        common, *rows = np.intersect1d(*(view['proposal_ids'] for view in views), return_indices=True)
        return ObjectViews(
            images=tuple(view['img'] for view in views),
            boxes=tuple(torch.from_numpy(view['proposals'][row]) for view, row in zip(views, rows, strict=True)),
            object_index=torch.from_numpy(common),
        )


def measure_pointing_accuracy(
    model: nn.Module,
    annotation_file: str | Path,
    image_root: str | Path,
    size: int = 224,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    levels: tuple[str, ...] = LEVELS,
    repeats: int = 1,
    max_area_fraction: float = MAX_AREA_FRACTION,
    seed: int = 0,
    max_images: int | None = None,
) -> PointingResult:
    """Samples two views of each image and scores whether the objects of one view are located in the other.

    Both directions are scored, so a pair of views yields up to two queries per object. As in pre-training, an object is
    excluded if a view clips its box by more than 40 % of the area or shows it on fewer than 12^2 pixels; it is also
    excluded if its box covers more than ``max_area_fraction`` of the key view. Images that cannot be read are skipped.
    Apart from about 100 bytes per query, memory does not grow with the number of images.

    Args:
        model (nn.Module): Model for :func:`ccop_mm.evaluation.feature_maps.feature_maps` with a ``data_preprocessor``.
            It runs in eval mode and is restored to its previous mode.
        annotation_file (str | Path): COCO annotation file with boxes.
        image_root (str | Path): Root folder of the annotated images.
        size (int): Side of a view in pixels. The training resolution gives the best results.
        batch_size (int): Pairs of views per batch.
        device (torch.device | str, optional): Device to move the model to. By default the model is not moved.
        levels (tuple[str, ...]): Levels to score; levels that the model does not have are omitted.
        repeats (int): Pairs of views per image.
        max_area_fraction (float): Maximum area of a box relative to the key view.
        seed (int): Random seed of the views and of the subset. Models must be compared with the same seed.
        max_images (int, optional): Use a random subset of this many images.

    Returns:
        PointingResult: Score of every query.

    Raises:
        InputError: A file is missing or invalid, an argument is out of range, or no object is usable.
    """
    if min(size, batch_size, repeats) < 1 or not 0 < max_area_fraction <= 1:
        raise InputError(
            'size, batch size and repeats must be at least 1 and the maximum area fraction in (0, 1], got '
            f'{size}, {batch_size}, {repeats} and {max_area_fraction}'
        )
    unknown = [level for level in levels if level not in STRIDES]
    if unknown:
        raise InputError(f'unknown levels {", ".join(unknown)}; available are {", ".join(STRIDES)}')
    if device is not None:
        model = to_device(model, device)
    images = limit_images(read_annotated_images(annotation_file, image_root), max_images, seed)
    parts = []
    with inference_mode(model):
        for batch in _batches(images, ViewSampler(size, seed), repeats, batch_size):
            parts += _score_batch(model, batch, levels, max_area_fraction)
    result = _concatenate(parts)
    if not len(result.area_fraction):
        raise InputError(
            f'{annotation_file}: no object of {len(images)} images is in both views and covers at most '
            f'{100 * max_area_fraction:g} % of the view; use more images or more repeats'
        )
    return result


def limit_images(
    images: Sequence[AnnotatedImage], limit: int | None, seed: int = 0
) -> list[tuple[int, AnnotatedImage]]:
    """Samples up to ``limit`` images in their original order; returns each with its index in ``images``.

    Raises:
        InputError: ``limit`` is below 1.
    """
    indexed = list(enumerate(images))
    if limit is None or len(images) <= limit:
        return indexed
    if limit < 1:
        raise InputError(f'at least 1 image is required, got {limit}')
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:limit])
    return [indexed[index] for index in chosen]


def _batches(
    images: list[tuple[int, AnnotatedImage]], sampler: ViewSampler, repeats: int, batch_size: int
) -> Iterator[list[tuple[int, ObjectViews]]]:
    """Yields lists of up to ``batch_size`` (image index, views), without pairs of views that share no object."""
    batch, num_skipped = [], 0
    for index, annotated in images:
        image = load_annotated_image(annotated)
        if image is None:
            num_skipped += 1
            continue
        for repeat in range(repeats):
            views = sampler.sample(image, annotated.boxes, index, repeat)
            if len(views.boxes[0]):
                batch.append((index, views))
            if len(batch) == batch_size:
                yield batch
                batch = []
    if batch:
        yield batch
    if num_skipped:
        print_log(f'{num_skipped} of {len(images)} images skipped', 'current', logging.WARNING)


def _score_batch(
    model: nn.Module, batch: list[tuple[int, ObjectViews]], levels: tuple[str, ...], max_area_fraction: float
) -> list[PointingResult]:
    """Scores a batch of view pairs in both directions."""
    device = next(model.parameters()).device
    image_index = torch.tensor([index for index, _ in batch])
    counts = torch.tensor([len(views.boxes[0]) for _, views in batch])
    batch_index = torch.repeat_interleave(torch.arange(len(batch)), counts)
    object_index = torch.cat([views.object_index for _, views in batch])
    boxes = [torch.cat([views.boxes[side] for _, views in batch]).float() for side in (0, 1)]
    view_shape = batch[0][1].images[0].shape[:2]
    maps = [
        feature_maps(
            model, normalize_views(model.data_preprocessor, [views.images[side] for _, views in batch], device)
        )
        for side in (0, 1)
    ]
    results = []
    for query, key in ((0, 1), (1, 0)):
        area_fraction = box_ops.area(boxes[key]) / (view_shape[0] * view_shape[1])
        keep = area_fraction <= max_area_fraction
        query_boxes, index, target_boxes = boxes[query][keep], batch_index[keep], boxes[key][keep]
        hits = {}
        for level in [level for level in levels if level in maps[key]]:
            similarity = box_similarity(
                maps[query][level], maps[key][level], query_boxes.to(device), index.to(device), STRIDES[level]
            ).cpu()
            inside = cells_inside(target_boxes, similarity.shape[1:], view_shape, STRIDES[level])
            hits[level] = pointing_hits(similarity, inside).numpy()
        x1, y1, x2, y2 = target_boxes.unbind(1)
        center_x, center_y = view_shape[1] / 2, view_shape[0] / 2
        center = (x1 <= center_x) & (center_x < x2) & (y1 <= center_y) & (center_y < y2)
        results.append(
            PointingResult(
                hits=hits,
                area_fraction=area_fraction[keep].double().numpy(),
                center=center.double().numpy(),
                image_index=image_index[index].numpy(),
                object_index=object_index[keep].numpy(),
            )
        )
    return results


def _concatenate(parts: list[PointingResult]) -> PointingResult:
    if not parts:
        return PointingResult()
    return PointingResult(
        hits={level: np.concatenate([part.hits[level] for part in parts]) for level in parts[0].hits},
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in FILE_KEYS},
    )
