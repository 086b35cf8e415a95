"""The light detection head of the frozen-detector probe: layers, loss, training on cached features, detections."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmdet.models.dense_heads import FCOSHead
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ccop_mm.evaluation.frozen_detector_data import DetectionImage
from ccop_mm.evaluation.frozen_detector_features import FeatureCache, Level
from ccop_mm.utils.errors import InputError

#: Targets of the cells without a box: background, and cells in crowd regions, which the classification loss ignores.
BACKGROUND, IGNORED = -1, -2
#: A level predicts the boxes whose farthest side from the cell is up to this many strides away; the last level predicts
#: all larger ones. mmdet's 8 leaves C5 without boxes in images of 128 px.
RANGE = 4
#: Channels of a group of group normalization.
GROUP_SIZE = 4
#: Initial distance of the sides of a box from the cell, in strides.
INITIAL_DISTANCE = 3.0
#: Initial score of every cell, as in RetinaNet and FCOS.
INITIAL_SCORE = 0.01
#: Post-processing of the detections of an image; 100 detections are what COCO's evaluation counts.
TEST_CFG = dict(nms_pre=300, score_thr=0.005, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)


@dataclass(frozen=True)
class HeadRecipe:
    """Width and training schedule of the head.

    Attributes:
        width (int): Channels of the head, a multiple of 4.
        epochs (int): Epochs of training.
        min_steps (int): Minimum number of iterations; with few images, the number of epochs grows.
        batch_size (int): Images per batch.
        learning_rate (float): Peak learning rate of AdamW, after a linear warm-up and before a cosine decay to 0.
        weight_decay (float): Weight decay of AdamW.
        warmup (int): Iterations of the warm-up.
        max_grad_norm (float): Gradients are scaled to this norm if theirs is larger.

    Raises:
        InputError: A value is out of range.
    """

    width: int = 64
    epochs: int = 8
    min_steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    warmup: int = 90
    max_grad_norm: float = 10.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.width % GROUP_SIZE:
            raise InputError(f'the width of the head must be a multiple of {GROUP_SIZE}, got {self.width}')
        if min(self.epochs, self.batch_size) < 1 or self.min_steps < 0 or not self.learning_rate > 0:
            raise InputError(
                'epochs and batch_size must be at least 1, min_steps at least 0 and learning_rate positive, got '
                f'{self.epochs}, {self.batch_size}, {self.min_steps} and {self.learning_rate}'
            )


class FrozenDetectorHead(nn.Module):
    """Head of FCOS (Tian et al., *FCOS: Fully Convolutional One-Stage Object Detection*, ICCV 2019) with few layers.

    Each level has a 1x1 convolution to a common width; one 3x3 convolution and the predictors are shared by all levels.
    Both are followed by group normalization and ReLU. The predictors, decoding and non-maximum suppression are those of
    mmdet's ``FCOSHead``, with center sampling and GIoU loss. FCOS has no anchors: its targets depend on cells and boxes
    only, so they are computed once and cached like the features.

    Args:
        levels (Sequence[Level]): Feature maps, from fine to coarse.
        num_classes (int): Number of classes.
        width (int): Channels of the head, a multiple of 4.
    """

    def __init__(self, levels: Sequence[Level], num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(self._conv(level.channels, width, 1) for level in levels)
        self.shared_conv = self._conv(width, width, 3)
        limits = [RANGE * level.stride for level in levels[:-1]]
        with DefaultScope.overwrite_default_scope('mmdet'):
            self.dense = FCOSHead(
                num_classes,
                width,
                feat_channels=width,
                stacked_convs=0,
                strides=[level.stride for level in levels],
                regress_ranges=list(zip([-1, *limits], [*limits, math.inf], strict=True)),
                center_sampling=True,
                norm_on_bbox=True,
                loss_bbox=dict(type='GIoULoss'),
                test_cfg=ConfigDict(TEST_CFG),
            )
        for predictor in (self.dense.conv_cls, self.dense.conv_reg, self.dense.conv_centerness):
            nn.init.normal_(predictor.weight, std=0.01)
            nn.init.zeros_(predictor.bias)
        nn.init.constant_(self.dense.conv_cls.bias, math.log(INITIAL_SCORE / (1 - INITIAL_SCORE)))
        nn.init.constant_(self.dense.conv_reg.bias, INITIAL_DISTANCE)

    @staticmethod
    def _conv(in_channels: int, out_channels: int, size: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=False),
            nn.GroupNorm(out_channels // GROUP_SIZE, out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Computes scores ``(B, classes, H, W)``, distances ``(B, 4, H, W)`` and centerness ``(B, 1, H, W)`` by level.

        Distances to the left, upper, right and lower side of the box are in strides in training mode, else in pixels.
        """
        features = [self.shared_conv(conv(part)) for conv, part in zip(self.lateral_convs, maps, strict=True)]
        return self.dense(tuple(features))

    def assign(
        self, boxes: Tensor, labels: Tensor, crowds: Tensor, map_shapes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Computes the targets of all P cells of an image.

        Args:
            boxes (Tensor): ``(n, 4)`` xyxy in pixels of the network input.
            labels (Tensor): ``(n,)`` class indices.
            crowds (Tensor): ``(m, 4)`` crowd regions.
            map_shapes (Sequence[tuple[int, int]]): Height and width of each level.

        Returns:
            tuple[Tensor, Tensor]: ``(P,)`` class index, :data:`BACKGROUND` or :data:`IGNORED`; ``(P, 4)`` distances to
            the left, upper, right and lower side of the box in strides. The cells of the levels follow each other, each
            in row-major order.
        """
        points = self.dense.prior_generator.grid_priors(list(map_shapes), device='cpu')
        found, distances = self.dense.get_targets(points, [InstanceData(bboxes=boxes, labels=labels)])
        targets = torch.cat(found)
        targets[targets == self.dense.num_classes] = BACKGROUND
        x, y = torch.cat(points)[:, :, None].unbind(1)  # (P, 1) each
        x1, y1, x2, y2 = crowds.unbind(1)
        in_crowd = ((x > x1) & (x < x2) & (y > y1) & (y < y2)).any(dim=1)
        targets[in_crowd & (targets == BACKGROUND)] = IGNORED
        return targets, torch.cat(distances)

    def loss(self, maps: Sequence[Tensor], targets: Tensor, distances: Tensor) -> Tensor:
        """Computes the sum of FCOS's losses: focal loss, GIoU loss weighted by centerness, and centerness loss.

        mmdet's ``loss_by_feat`` averages over the processes of a distributed run, but only one of them runs the probe.

        Args:
            maps (Sequence[Tensor]): ``(B, C, H, W)`` features of each level.
            targets (Tensor): ``(B, P)`` from :meth:`assign`.
            distances (Tensor): ``(B, P, 4)`` from :meth:`assign`.

        Returns:
            Tensor: Scalar.
        """
        flat = [torch.cat([part.flatten(2) for part in output], dim=2).transpose(1, 2) for output in self(maps)]
        scores, predicted, centerness = flat  # (B, P, classes), (B, P, 4), (B, P, 1)
        positive = targets >= 0
        num_positive = max(int(positive.sum()), 1)
        loss = self.dense.loss_cls(
            scores.flatten(0, 1),
            targets.where(positive, self.dense.num_classes).flatten(),  # mmdet's label of the background
            weight=(targets != IGNORED).to(scores).flatten(),
            avg_factor=num_positive,
        )
        expected = distances[positive]
        weight = self.dense.centerness_target(expected)
        # The IoU does not depend on the position of the cell and the stride.
        corner = expected.new_tensor([-1, -1, 1, 1])
        loss += self.dense.loss_bbox(
            predicted[positive] * corner, expected * corner, weight=weight, avg_factor=weight.sum().clamp(min=1e-6)
        )
        return loss + self.dense.loss_centerness(centerness[positive][:, 0], weight, avg_factor=num_positive)

    @torch.no_grad()
    def detect(self, maps: Sequence[Tensor], images: Sequence[DetectionImage], size: int) -> list[InstanceData]:
        """Detects the objects of B images.

        Args:
            maps (Sequence[Tensor]): ``(B, C, H, W)`` features of each level.
            images (Sequence[DetectionImage]): The images.
            size (int): Short side of the resized images in pixels.

        Returns:
            list[InstanceData]: For each image ``bboxes (n, 4)`` xyxy in pixels of the original image, ``scores (n,)``
            and ``labels (n,)``, class indices.
        """
        info = [dict(img_shape=item.resized_shape(size), scale_factor=item.scale_factor(size)) for item in images]
        return self.dense.predict_by_feat(*self(maps), batch_img_metas=info, rescale=True)


@dataclass(frozen=True)
class Targets:
    """Targets of the cells of a :class:`ccop_mm.evaluation.frozen_detector_features.Bucket`.

    Attributes:
        labels (Tensor): ``(N, views, P)``, see :meth:`FrozenDetectorHead.assign`.
        distances (Tensor): ``(N, views, P, 4)``.
    """

    labels: Tensor
    distances: Tensor

    def class_agnostic(self) -> 'Targets':
        """Returns the targets with all classes as class 0."""
        return Targets(self.labels.clamp(max=0), self.distances)


def assign_targets(cache: FeatureCache, classes: Mapping[int, int]) -> list[Targets]:
    """Computes the targets of all images and views, by bucket; they are the same for every head.

    Args:
        cache (FeatureCache): Features and boxes.
        classes (Mapping[int, int]): Category id -> class index, for all boxes of the images.

    Returns:
        list[Targets]: Targets on the CPU.
    """
    head = _build_head(cache.levels, max(classes.values()) + 1)
    targets = []
    for bucket in cache.buckets:
        shapes = [(part.shape[3], part.shape[4]) for part in bucket.maps]
        found = []
        for image in bucket.images:
            labels = torch.tensor([classes[label] for label in image.annotated.labels.tolist()], dtype=torch.long)
            for view in range(bucket.maps[0].shape[1]):
                boxes, crowds = (
                    torch.from_numpy(image.resized_boxes(part, cache.size, flip=view == 1))
                    for part in (image.annotated.boxes, image.crowds)
                )
                found.append(head.assign(boxes, labels, crowds, shapes))
        by_image = (len(bucket.images), -1)
        stacked = (torch.stack(part).unflatten(0, by_image) for part in zip(*found, strict=True))
        targets.append(Targets(*stacked))
    return targets


def _build_head(levels: Sequence[Level], num_classes: int, width: int = 16, seed: int = 0) -> FrozenDetectorHead:
    """Builds a head without using or changing the global random number generators."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FrozenDetectorHead(levels, num_classes, width)


def train_head(
    cache: FeatureCache,
    targets: Sequence[Targets],
    num_classes: int,
    recipe: HeadRecipe,
    seed: int = 0,
    device: torch.device | str = 'cpu',
) -> FrozenDetectorHead:
    """Trains a new head on cached features.

    The global random number generators are neither used nor changed. On the CPU, equal arguments give an equal head.

    Args:
        cache (FeatureCache): Features of the training images.
        targets (Sequence[Targets]): Targets of each bucket.
        num_classes (int): Number of classes of the targets.
        recipe (HeadRecipe): Width and schedule.
        seed (int): Random seed of the initial weights, the order of the images and the mirroring.
        device (torch.device | str): Device of the head.

    Returns:
        FrozenDetectorHead: The head, in eval mode.
    """
    head = _build_head(cache.levels, num_classes, recipe.width, seed).to(device).train()
    rng = np.random.default_rng(seed)
    steps_per_epoch = sum(-(-len(bucket.images) // recipe.batch_size) for bucket in cache.buckets)
    num_epochs = max(recipe.epochs, -(-recipe.min_steps // steps_per_epoch))
    num_steps = num_epochs * steps_per_epoch
    optimizer = torch.optim.AdamW(head.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / recipe.warmup) * (1 + math.cos(math.pi * step / num_steps)) / 2,
    )
    with torch.enable_grad():
        for _ in range(num_epochs):
            for number, rows, views in _shuffled_batches(cache, recipe.batch_size, rng):
                maps = [part[rows, views].to(device).float() for part in cache.buckets[number].maps]
                labels, distances = (
                    part[rows, views].to(device) for part in (targets[number].labels, targets[number].distances)
                )
                loss = head.loss(maps, labels, distances)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(head.parameters(), recipe.max_grad_norm)
                optimizer.step()
                schedule.step()
    return head.eval()


def _shuffled_batches(
    cache: FeatureCache, batch_size: int, rng: np.random.Generator
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yields bucket, images and views of each batch of an epoch; all images of a batch have one padded shape."""
    batches = []
    for number, bucket in enumerate(cache.buckets):
        order = torch.from_numpy(rng.permutation(len(bucket.images)))
        views = torch.from_numpy(rng.integers(bucket.maps[0].shape[1], size=len(order)))
        batches += [(number, *part) for part in zip(order.split(batch_size), views.split(batch_size), strict=True)]
    for index in rng.permutation(len(batches)):
        yield batches[index]


def detect_objects(
    head: FrozenDetectorHead, cache: FeatureCache, category_ids: Sequence[int], batch_size: int = 32
) -> list[dict[str, Any]]:
    """Detects the objects of all images.

    Args:
        head (FrozenDetectorHead): Head in eval mode.
        cache (FeatureCache): Features of the images.
        category_ids (Sequence[int]): Category id of each class index.
        batch_size (int): Images per batch.

    Returns:
        list[dict]: Entries in COCO's format of results: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height)
        in pixels of the original image, and ``score``.
    """
    device = next(head.parameters()).device
    detections = []
    for bucket in cache.buckets:
        for start in range(0, len(bucket.images), batch_size):
            rows = slice(start, start + batch_size)
            images = bucket.images[rows]
            found = head.detect([part[rows, 0].to(device).float() for part in bucket.maps], images, cache.size)
            for image, instances in zip(images, found, strict=True):
                corners = instances.bboxes.double().cpu()
                boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
                detections += [
                    dict(image_id=image.image_id, category_id=category_ids[label], bbox=box, score=score)
                    for box, score, label in zip(
                        boxes, instances.scores.tolist(), instances.labels.tolist(), strict=True
                    )
                ]
    return detections
