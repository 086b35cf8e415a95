"""Box-query pointing of a model on annotated photos: two views of each, drawn the same way for every model."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmselfsup.registry import TRANSFORMS
from torch import Tensor, nn

from ccop_mm import boxes as box_ops
from ccop_mm.datasets.sampler import SampleKey, drawing_from
from ccop_mm.errors import InputError
from ccop_mm.evaluation.annotated_photos import AnnotatedPhoto, read_annotated_photos
from ccop_mm.evaluation.feature_maps import STRIDES, feature_maps, normalize_views
from ccop_mm.evaluation.object_features import inference_mode, read_pixels, to_device
from ccop_mm.evaluation.pointing import PointingResult, box_similarity, cells_inside, pointing_hits

#: C2 is left out: no detector's head reads it, and it sees little more than color.
LEVELS = ('C3', 'C4', 'C5', 'P2', 'P3', 'P4', 'P5')
#: An object over so much of a view is hit by almost any point.
MAX_SHARE = 0.4


@dataclass
class ObjectViews:
    """Two views of a photo.

    Attributes:
        images (tuple): Query and key view, each (h, w, 3) uint8 BGR.
        boxes (tuple): Query and key boxes, each (n, 4) xyxy in pixels, the same objects row by row.
        rows (Tensor): (n,), which of the photo's objects each row is.
    """

    images: tuple[np.ndarray, np.ndarray]
    boxes: tuple[Tensor, Tensor]
    rows: Tensor


class ViewDrawer:
    """Draws two views of a photo with its annotated boxes: MoCo v2's augmentation, as in pre-training.

    The augmentation is fixed here and not read from a config, so that results of different configs compare.

    Args:
        size (int): Side of the views in pixels.
        seed (int): With the photo's number and the repeat it decides a draw.
    """

    def __init__(self, size: int = 224, seed: int = 0) -> None:
        self.seed = seed
        jitter = dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
        grey = dict(type='RandomGrayscale', prob=0.2, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989))
        steps = [
            dict(type='ObjectResizedCrop', size=size, scale=(0.2, 1.0)),
            dict(type='RandomApply', transforms=[jitter], prob=0.8),
            grey,
            dict(type='RandomGaussianBlur', sigma_min=0.1, sigma_max=2.0, prob=0.5),
            dict(type='ObjectFlip', prob=0.5),
        ]
        with DefaultScope.overwrite_default_scope('mmselfsup'):
            self._view = Compose([TRANSFORMS.build(step) for step in steps])

    def draw(self, image: np.ndarray, boxes: np.ndarray, index: int, repeat: int = 0) -> ObjectViews:
        """Two views of photo number ``index``, the same for the same arguments.

        Args:
            image (np.ndarray): (h, w, 3) uint8 BGR.
            boxes (np.ndarray): (n, 4) float32 xyxy in pixels.
            index (int): Number of the photo.
            repeat (int): Number of the draw.
        """
        results = dict(
            img=image, img_shape=image.shape[:2], proposals=boxes, proposal_ids=np.arange(len(boxes), dtype=np.int64)
        )
        with drawing_from(SampleKey(self.seed, repeat, index)):
            views = [self._view(dict(results)) for _ in range(2)]
        common, *rows = np.intersect1d(*(view['proposal_ids'] for view in views), return_indices=True)
        return ObjectViews(
            images=tuple(view['img'] for view in views),
            boxes=tuple(torch.from_numpy(view['proposals'][row]) for view, row in zip(views, rows, strict=True)),
            rows=torch.from_numpy(common),
        )


def measure_pointing(
    model: nn.Module,
    annotation_file: str | Path,
    image_root: str | Path,
    size: int = 224,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    levels: tuple[str, ...] = LEVELS,
    repeats: int = 1,
    max_share: float = MAX_SHARE,
    seed: int = 0,
    max_photos: int | None = None,
) -> PointingResult:
    """Draws two views of each photo, queries one with the objects of the other, and notes who is hit.

    Both directions are asked, so a pair of views gives an object two queries at most. Objects that fill more than
    ``max_share`` of the view that is pointed into are left out, and so are those that a view clips by more than 40 % or
    shows on less than 12^2 pixels, as in pre-training. Photos that cannot be read are skipped. Memory does not
    grow with the number of photos but for some 100 bytes a query.

    Args:
        model (nn.Module): See :func:`ccop_mm.evaluation.feature_maps.feature_maps`; it also needs a
            ``data_preprocessor``. It runs in eval mode and is left in the mode it was in.
        annotation_file (str | Path): A COCO json with boxes.
        image_root (str | Path): Folder that its file names are relative to.
        size (int): Side of a view in pixels; best the one that the network was trained at.
        batch_size (int): Photos a batch.
        device (torch.device | str, optional): Moves the model there; by default it stays where it is.
        levels (tuple[str, ...]): Maps to point on; those the model does not have are left out.
        repeats (int): Pairs of views drawn of each photo.
        max_share (float): Largest share of the view that an object may fill.
        seed (int): Decides the views; the same for every model that is compared.
        max_photos (int, optional): Use a subset of so many photos, drawn with ``seed``.

    Raises:
        InputError: If a file is missing or not what it should be, or no object is left.
    """
    if min(size, batch_size, repeats) < 1 or not 0 < max_share <= 1:
        raise InputError(
            f'size, batch size and repeats must be at least 1 and the largest share in (0, 1], got {size}, '
            f'{batch_size}, {repeats} and {max_share}'
        )
    unknown = [level for level in levels if level not in STRIDES]
    if unknown:
        raise InputError(f'levels are {", ".join(STRIDES)}; got {", ".join(unknown)}')
    if device is not None:
        model = to_device(model, device)
    photos = pick_photos(read_annotated_photos(annotation_file, image_root), max_photos, seed)
    parts = []
    with inference_mode(model):
        for batch in _batches(photos, ViewDrawer(size, seed), repeats, batch_size):
            parts += _point(model, batch, levels, max_share)
    result = _join(parts)
    if not len(result.share):
        raise InputError(
            f'{annotation_file}: no object of {len(photos)} photos is in both views and fills at most '
            f'{100 * max_share:g} % of the view; give more photos, or more repeats'
        )
    return result


def pick_photos(photos: list[AnnotatedPhoto], limit: int | None, seed: int = 0) -> list[tuple[int, AnnotatedPhoto]]:
    """Numbered photos, at most ``limit`` of them, drawn with ``seed``, in their order."""
    numbered = list(enumerate(photos))
    if limit is None or len(photos) <= limit:
        return numbered
    if limit < 1:
        raise InputError(f'at least 1 photo is needed, got {limit}')
    chosen = np.sort(np.random.default_rng(seed).permutation(len(photos))[:limit])
    return [numbered[index] for index in chosen]


def _batches(photos, drawer: ViewDrawer, repeats: int, batch_size: int) -> Iterator[list[tuple[int, ObjectViews]]]:
    """Lists of at most ``batch_size`` (photo's number, its views); views without a common object are passed over."""
    batch, bad = [], 0
    for index, photo in photos:
        image = read_pixels(photo)
        if image is None:
            bad += 1
            continue
        for repeat in range(repeats):
            views = drawer.draw(image, photo.boxes, index, repeat)
            if len(views.boxes[0]):
                batch.append((index, views))
            if len(batch) == batch_size:
                yield batch
                batch = []
    if batch:
        yield batch
    if bad:
        print_log(f'{bad} of {len(photos)} photos skipped', 'current', logging.WARNING)


def _point(model: nn.Module, batch, levels: tuple[str, ...], max_share: float) -> list[PointingResult]:
    """Hits of a batch, in both directions."""
    device = next(model.parameters()).device
    numbers = torch.tensor([number for number, _ in batch])
    counts = torch.tensor([len(views.boxes[0]) for _, views in batch])
    batch_index = torch.repeat_interleave(torch.arange(len(batch)), counts)
    rows = torch.cat([views.rows for _, views in batch])
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
        share = box_ops.area(boxes[key]) / (view_shape[0] * view_shape[1])
        keep = share <= max_share
        asked, index, target = boxes[query][keep], batch_index[keep], boxes[key][keep]
        hits = {}
        for level in [level for level in levels if level in maps[key]]:
            similarity = box_similarity(
                maps[query][level], maps[key][level], asked.to(device), index.to(device), STRIDES[level]
            ).cpu()
            inside = cells_inside(target, similarity.shape[1:], view_shape, STRIDES[level])
            hits[level] = pointing_hits(similarity, inside).numpy()
        x1, y1, x2, y2 = target.unbind(1)
        center_x, center_y = view_shape[1] / 2, view_shape[0] / 2
        center = (x1 <= center_x) & (center_x < x2) & (y1 <= center_y) & (center_y < y2)
        results.append(
            PointingResult(
                hits, share[keep].double().numpy(), center.double().numpy(), numbers[index].numpy(), rows[keep].numpy()
            )
        )
    return results


def _join(parts: list[PointingResult]) -> PointingResult:
    if not parts:
        return PointingResult()
    return PointingResult(
        hits={level: np.concatenate([part.hits[level] for part in parts]) for level in parts[0].hits},
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ('share', 'center', 'photo', 'row')
        },
    )
