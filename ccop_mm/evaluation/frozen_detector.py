"""Frozen-detector probe: box AP of a light detection head that is trained on the features of a frozen network."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from ccop_mm.evaluation.frozen_detector_ap import METRICS, box_ap
from ccop_mm.evaluation.frozen_detector_data import DetectionImage, read_detection_images
from ccop_mm.evaluation.frozen_detector_features import (
    FrozenNetwork,
    cache_features,
    count_bytes,
    measure_statistics,
)
from ccop_mm.evaluation.frozen_detector_head import HeadRecipe, assign_targets, detect_objects, train_head
from ccop_mm.evaluation.frozen_detector_report import FrozenDetectorResult
from ccop_mm.utils.coco_json import class_names, read_json
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.model import inference_mode, to_device

#: What the head distinguishes: ``objects`` makes all boxes one class, ``classes`` keeps the categories.
TASKS = ('objects', 'classes')


@dataclass(frozen=True)
class FrozenDetectorData:
    """Annotated images that heads are trained on, and others that AP is measured on.

    Attributes:
        train_images (list[DetectionImage]): Images for training.
        images (list[DetectionImage]): Images for AP.
        content (dict): COCO json of ``images``.
    """

    train_images: list[DetectionImage]
    images: list[DetectionImage]
    content: dict[str, Any]


def read_frozen_detector_data(
    train_annotation_file: str | Path,
    train_image_root: str | Path,
    annotation_file: str | Path,
    image_root: str | Path,
    max_train_images: int | None = None,
    max_images: int | None = None,
) -> FrozenDetectorData:
    """Reads the annotations for :func:`measure_frozen_detector` without opening images.

    Args:
        train_annotation_file (str | Path): COCO json with boxes to train on. Images without boxes are used, too.
        train_image_root (str | Path): Root folder of its images.
        annotation_file (str | Path): COCO json with boxes to measure AP on.
        image_root (str | Path): Root folder of its images.
        max_train_images (int, optional): Train on a fixed random subset of this many images.
        max_images (int, optional): Measure AP on a fixed random subset of this many images.

    Returns:
        FrozenDetectorData: The data.

    Raises:
        InputError: A file or folder is missing or invalid, an image is in both sets, the files number their classes
            differently, or a number of images is below 1.
    """
    train_images = read_detection_images(train_annotation_file, train_image_root, max_train_images)
    images = read_detection_images(annotation_file, image_root, max_images)
    train_paths = {image.annotated.path.resolve() for image in train_images}
    shared = [image.annotated.path for image in images if image.annotated.path.resolve() in train_paths]
    if shared:
        raise InputError(
            f'{len(shared)} images of {annotation_file} are also in {train_annotation_file}, for example {shared[0]}; '
            'measure AP on images that the head was not trained on'
        )
    train_names, names = class_names(train_annotation_file), class_names(annotation_file)
    for category_id in sorted(set(names) & set(train_names)):
        if names[category_id] != train_names[category_id]:
            raise InputError(
                f'category id {category_id} is {train_names[category_id]!r} in {train_annotation_file}, but '
                f'{names[category_id]!r} in {annotation_file}; both files must number the classes equally'
            )
    return FrozenDetectorData(train_images, images, read_json(annotation_file))


def measure_frozen_detector(
    model: nn.Module,
    data: FrozenDetectorData,
    size: int = 224,
    features: str = 'backbone',
    tasks: Sequence[str] = TASKS,
    seeds: Sequence[int] = (0,),
    recipe: HeadRecipe | None = None,
    flip: bool = True,
    max_memory: float = 8.0,
    batch_size: int = 32,
    device: torch.device | str | None = None,
) -> FrozenDetectorResult:
    """Trains a light detection head on the features of a frozen network and measures its box AP.

    The features of all images are computed once and kept in memory. Each channel is standardized by its mean and
    standard deviation on the training images, so that the result does not depend on the scale of the features. One head
    per task and seed is then trained and evaluated with pycocotools. The model runs in eval mode without gradients and
    is restored to its previous mode. Random number generators are not changed.

    Args:
        model (nn.Module): Model with a ``backbone`` and a ``data_preprocessor``, such as :class:`ccop_mm.models.CCOP`,
            mmselfsup's MoCo or an mmdet detector.
        data (FrozenDetectorData): Result of :func:`read_frozen_detector_data`.
        size (int): Short side of the images in pixels; a long side is at most twice that.
        features (str): ``'backbone'`` to train on C3 to C5, ``'neck'`` to train on P3 to P5.
        tasks (Sequence[str]): Any of ``'objects'``, all boxes as one class, and ``'classes'``.
        seeds (Sequence[int]): Random seeds of the heads.
        recipe (HeadRecipe, optional): Width and training schedule of the heads.
        flip (bool): Whether to train on mirrored images, too, which takes twice the memory for the training features.
        max_memory (float): Maximum memory for the features in GB (10^9 bytes).
        batch_size (int): Images per batch when the features are computed.
        device (torch.device | str, optional): Device to move the model to. By default the model is not moved.

    Returns:
        FrozenDetectorResult: AP, AP50 and AP75 of each task and seed, and the detections.

    Raises:
        InputError: An argument is out of range, the model has no suitable feature maps, the features need more than
            ``max_memory``, or no image can be read.
    """
    recipe = recipe or HeadRecipe()
    if min(size, batch_size) < 1 or not max_memory > 0:
        raise InputError(
            f'size and batch size must be at least 1 and the memory positive, got {size}, {batch_size} and {max_memory}'
        )
    if not tasks or not set(tasks) <= set(TASKS):
        raise InputError(f'tasks must be among {", ".join(TASKS)}, got {", ".join(tasks) or "none"}')
    check_seeds(seeds)
    if device is not None:
        model = to_device(model, device)
    start = time.perf_counter()
    with inference_mode(model):
        network = FrozenNetwork(model, features)
        check_memory(network, data, size, flip, max_memory)
        statistics = measure_statistics(network, data.train_images, size, batch_size)
        train_cache = cache_features(network, data.train_images, size, statistics, flip, batch_size)
        cache = cache_features(network, data.images, size, statistics, batch_size=batch_size)
    seconds = dict(features=time.perf_counter() - start)
    levels = [level.name for level in network.levels]
    print_log(
        f'features {", ".join(levels)} of {len(train_cache.images)} + {len(cache.images)} images: '
        f'{(train_cache.num_bytes + cache.num_bytes) / 1e9:.2f} GB, {seconds["features"]:.0f} s',
        'current',
    )
    result = FrozenDetectorResult(
        settings=dict(
            levels=levels,
            num_train_images=len(train_cache.images),
            num_images=len(cache.images),
            size=size,
            flip=flip,
            **dataclasses.asdict(recipe),
        ),
        seeds=list(seeds),
        metrics={task: {name: [] for name in METRICS} for task in tasks},
        detections={task: [] for task in tasks},
        seconds=seconds,
    )
    start = time.perf_counter()
    category_ids = sorted({label for image in train_cache.images for label in image.annotated.labels.tolist()})
    if not category_ids:
        raise InputError('none of the training images that could be read has a box')
    targets = assign_targets(train_cache, {category_id: index for index, category_id in enumerate(category_ids)})
    image_ids = [image.image_id for image in cache.images]
    for task in tasks:
        single = task == 'objects'
        task_targets = [part.class_agnostic() for part in targets] if single else targets
        num_classes = 1 if single else len(category_ids)
        for seed in seeds:
            head = train_head(train_cache, task_targets, num_classes, recipe, seed, network.device)
            detections = detect_objects(head, cache, category_ids)
            metrics = box_ap(data.content, detections, image_ids, class_agnostic=single)
            result.detections[task].append(detections)
            for name, value in metrics.items():
                result.metrics[task][name].append(value)
            values = ', '.join(f'{name} {100 * value:.1f}' for name, value in metrics.items())
            print_log(f'frozen detector, {task}, seed {seed}: {values}', 'current')
    seconds['heads'] = time.perf_counter() - start
    return result


def check_seeds(seeds: Sequence[int]) -> None:
    """Checks the seeds of several heads.

    Raises:
        InputError: There is none, one occurs twice, or one is out of range.
    """
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        raise InputError(f'seeds must be different integers from 0 to 2^32 - 1, got {list(seeds)}')


def check_memory(network: FrozenNetwork, data: FrozenDetectorData, size: int, flip: bool, max_memory: float) -> None:
    """Checks the memory for the features before anything is computed.

    Raises:
        InputError: It exceeds ``max_memory`` GB.
    """
    needed = count_bytes(network, data.train_images, size, flip) + count_bytes(network, data.images, size)
    if needed > max_memory * 1e9:
        channels = ', '.join(f'{level.name}: {level.channels}' for level in network.levels)
        raise InputError(
            f'the features of {len(data.train_images)} + {len(data.images)} images (channels of {channels}) need '
            f'{needed / 1e9:.1f} GB, more than the maximum of {max_memory:g} GB; use fewer images, a smaller size, no '
            'mirrored images, the features of the neck, or a higher maximum'
        )
