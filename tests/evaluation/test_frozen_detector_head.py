import math

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from ccop_mm.evaluation.frozen_detector_data import DetectionImage
from ccop_mm.evaluation.frozen_detector_features import Bucket, FeatureCache, Level
from ccop_mm.evaluation.frozen_detector_head import (
    BACKGROUND,
    IGNORED,
    RANGE,
    FrozenDetectorHead,
    HeadRecipe,
    assign_targets,
    detect_objects,
    train_head,
)
from ccop_mm.utils.coco_json import AnnotatedImage
from ccop_mm.utils.errors import InputError

LEVELS = [Level('C3', 1, 8, 6), Level('C4', 2, 16, 10), Level('C5', 3, 32, 4)]
SHAPE = (64, 96)
MAP_SHAPES = [(8, 12), (4, 6), (2, 3)]
QUICK = HeadRecipe(width=16, epochs=2, min_steps=0, batch_size=4)


def random_boxes(rng, count):
    sides = rng.uniform(6, 60, (count, 2))
    corner = rng.uniform(0, 1, (count, 2)) * (np.array([96, 64]) - sides)
    return torch.from_numpy(np.concatenate([corner, corner + sides], axis=1)).float()


def make_image(image_id, boxes, labels, crowds=(), shape=SHAPE):
    annotated = AnnotatedImage(
        None, shape, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64).reshape(-1)
    )
    return DetectionImage(image_id, annotated, np.array(crowds, np.float32).reshape(-1, 4))


def random_cache(seed=0, counts=(5, 2), views=2, labels=(3, 8)):
    """Features without any relation to the boxes, in a bucket of landscape and one of portrait images."""
    rng = np.random.default_rng(seed)
    buckets = []
    for number, count in enumerate(counts):
        shape, map_shapes = (SHAPE, MAP_SHAPES) if number == 0 else (SHAPE[::-1], [part[::-1] for part in MAP_SHAPES])
        images = []
        for index in range(count):
            boxes = random_boxes(rng, index % 3).numpy()  # some images have no box
            if number:
                boxes = boxes[:, [1, 0, 3, 2]]
            images.append(make_image(100 * number + index, boxes, rng.choice(labels, len(boxes)), shape=shape))
        maps = [
            torch.from_numpy(rng.normal(size=(count, views, level.channels, *part))).half()
            for level, part in zip(LEVELS, map_shapes, strict=True)
        ]
        buckets.append(Bucket(images, maps))
    return FeatureCache(64, LEVELS, buckets)


def assign_slowly(boxes, labels, crowds):
    """FCOS's targets cell by cell: center sampling with a radius of 1.5 strides; the smallest box wins."""
    targets, distances = [], []
    limits = [0, RANGE * 8, RANGE * 16, math.inf]
    for level, (rows, columns) in enumerate(MAP_SHAPES):
        stride = LEVELS[level].stride
        for row in range(rows):
            for column in range(columns):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                best = None
                for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
                    center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
                    inside = x1 < x < x2 and y1 < y < y2
                    central = max(abs(x - center_x), abs(y - center_y)) < 1.5 * stride
                    sides = (x - x1, y - y1, x2 - x, y2 - y)
                    fits = limits[level] <= max(sides) <= limits[level + 1]
                    area = (x2 - x1) * (y2 - y1)
                    if inside and central and fits and (best is None or area < best[0]):
                        best = (area, label, [side / stride for side in sides])
                in_crowd = any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in crowds.tolist())
                targets.append(best[1] if best else IGNORED if in_crowd else BACKGROUND)
                distances.append(best[2] if best else None)
    return targets, distances


def test_targets_equal_a_slow_assignment():
    rng = np.random.default_rng(0)
    head = FrozenDetectorHead(LEVELS, 5, 16)
    seen = set()
    for count in (0, 1, 2, 4, 8):
        boxes, crowds = random_boxes(rng, count), random_boxes(rng, count // 2)
        labels = torch.from_numpy(rng.integers(0, 5, count))
        targets, distances = head.assign(boxes, labels, crowds, MAP_SHAPES)
        expected, expected_distances = assign_slowly(boxes, labels, crowds)
        assert targets.tolist() == expected
        seen |= set(expected)
        for found, values in zip(distances.tolist(), expected_distances, strict=True):
            assert values is None or found == pytest.approx(values, abs=1e-4)
    assert seen == {IGNORED, BACKGROUND, 0, 1, 2, 3, 4}


def random_maps(batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, level.channels, *part, generator=generator)
        for level, part in zip(LEVELS, MAP_SHAPES, strict=True)
    ]


def head_with_varied_outputs(num_classes=3):
    head = FrozenDetectorHead(LEVELS, num_classes, 16).train()
    for predictor in (head.dense.conv_cls, head.dense.conv_reg, head.dense.conv_centerness):
        torch.nn.init.normal_(predictor.weight, std=0.2)
    return head


def test_loss_equals_that_of_mmdet():
    rng = np.random.default_rng(1)
    head, maps = head_with_varied_outputs(), random_maps()
    boxes = [random_boxes(rng, count) for count in (3, 0, 5)]
    labels = [torch.from_numpy(rng.integers(0, 3, len(part))) for part in boxes]
    assigned = [head.assign(*part, torch.zeros(0, 4), MAP_SHAPES) for part in zip(boxes, labels, strict=True)]
    loss = head.loss(maps, *map(torch.stack, zip(*assigned, strict=True)))
    instances = [InstanceData(bboxes=part, labels=label) for part, label in zip(boxes, labels, strict=True)]
    parts = head.dense.loss_by_feat(*head(maps), instances, [{}] * 3)
    assert set(parts) == {'loss_cls', 'loss_bbox', 'loss_centerness'} and min(parts.values()) > 0.01
    torch.testing.assert_close(loss, sum(parts.values()))


def test_cells_of_crowds_do_not_change_the_loss():
    head, maps = head_with_varied_outputs(), random_maps(1)
    boxes, labels, crowd = torch.tensor([[8.0, 8, 30, 30]]), torch.tensor([1]), torch.tensor([[48.0, 0, 96, 64]])
    targets, distances = head.assign(boxes, labels, crowd, MAP_SHAPES)
    assert int((targets == IGNORED).sum()) == 8 * 6 + 4 * 3 + 2 * 1  # cells whose centers are in the right half
    scores = head(maps)[0]
    loss = head.loss(maps, targets[None], distances[None])
    gradient = torch.autograd.grad(loss, head.dense.conv_cls.bias)
    plain = head.loss(maps, head.assign(boxes, labels, crowd[:0], MAP_SHAPES)[0][None], distances[None])
    assert plain > loss
    # The difference is the focal loss of the ignored cells.
    flat = torch.cat([part.flatten(2) for part in scores], dim=2)[0][:, targets == IGNORED]
    background = (0.75 * flat.sigmoid() ** 2 * -torch.nn.functional.logsigmoid(-flat)).sum()
    torch.testing.assert_close(plain - loss, background / (targets == 1).sum())
    assert gradient[0].isfinite().all()


def test_images_without_boxes_give_a_finite_loss_and_gradients_for_all_weights():
    head, maps = head_with_varied_outputs(), random_maps(2)
    targets, distances = head.assign(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), MAP_SHAPES)
    loss = head.loss(maps, targets.expand(2, -1), distances.expand(2, -1, -1))
    loss.backward()
    assert loss > 0
    assert all(part.grad is not None and part.grad.isfinite().all() for part in head.parameters())


def test_targets_of_mirrored_images():
    cache = random_cache()
    targets = assign_targets(cache, {3: 0, 8: 1})
    assert [tuple(part.labels.shape) for part in targets] == [(5, 2, 126), (2, 2, 126)]
    assert [tuple(part.distances.shape) for part in targets] == [(5, 2, 126, 4), (2, 2, 126, 4)]
    for part, shapes in zip(targets, (MAP_SHAPES, [shape[::-1] for shape in MAP_SHAPES]), strict=True):
        start = 0
        for rows, columns in shapes:
            stop = start + rows * columns
            labels = part.labels[:, :, start:stop].unflatten(2, (rows, columns))
            assert torch.equal(labels[:, 0], labels[:, 1].flip(2))
            sides = part.distances[:, :, start:stop].unflatten(2, (rows, columns))
            positive = labels[:, 0] >= 0
            mirrored = sides[:, 1].flip(2)[..., [2, 1, 0, 3]]
            torch.testing.assert_close(sides[:, 0][positive], mirrored[positive])
            start = stop
    labels = torch.cat([part.labels.flatten() for part in targets])
    assert labels.unique().tolist() == [BACKGROUND, 0, 1]
    single = torch.cat([part.class_agnostic().labels.flatten() for part in targets])
    assert single.unique().tolist() == [BACKGROUND, 0]
    assert torch.equal(single >= 0, labels >= 0)


def train(cache, recipe, seed=0):
    return train_head(cache, assign_targets(cache, {3: 0, 8: 1}), 2, recipe, seed)


def test_training_is_reproducible_and_does_not_touch_the_global_generators():
    cache = random_cache()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    heads = [train(cache, QUICK, seed).state_dict() for seed in (4, 4, 5)]
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    torch.rand(7)
    np.random.rand(7)
    heads.append(train(cache, QUICK, 4).state_dict())
    for other in (heads[1], heads[3]):
        assert all(torch.equal(heads[0][name], other[name]) for name in heads[0])
    assert not torch.equal(heads[0]['shared_conv.0.weight'], heads[2]['shared_conv.0.weight'])


@pytest.fixture
def batches(monkeypatch):
    """Finest maps of the batches that a head is trained on."""
    maps = []
    loss = FrozenDetectorHead.loss

    def record(self, batch, *targets):
        maps.append(batch[0])
        return loss(self, batch, *targets)

    monkeypatch.setattr(FrozenDetectorHead, 'loss', record)
    return maps


@pytest.mark.parametrize('min_steps, expected', [(0, 2 * 3), (7, 3 * 3), (10, 4 * 3)])
def test_number_of_steps(batches, min_steps, expected):
    """Buckets of 5 and 2 images give two and one batches of up to 4."""
    train(random_cache(), HeadRecipe(width=16, epochs=2, min_steps=min_steps, batch_size=4))
    sizes = [len(part) for part in batches]
    assert len(sizes) == expected
    assert all(sorted(sizes[start : start + 3]) == [1, 2, 4] for start in range(0, expected, 3))


def test_all_images_and_both_views_are_used(batches):
    cache = random_cache()
    train(cache, HeadRecipe(width=16, epochs=12, min_steps=0, batch_size=4))
    expected = [view for bucket in cache.buckets for image in bucket.maps[0].float() for view in image]
    found = {tuple(image.flatten()[:8].tolist()) for part in batches for image in part}
    assert found == {tuple(part.flatten()[:8].tolist()) for part in expected}
    assert len(found) == 14


def test_detections_are_in_pixels_of_the_original_image():
    """Every cell of C4 predicts the box 16 px to the left, 8 up, 32 right and 24 down."""
    head = FrozenDetectorHead(LEVELS, 2, 16).eval()
    for predictor in (head.dense.conv_cls, head.dense.conv_reg, head.dense.conv_centerness):
        torch.nn.init.zeros_(predictor.weight)
    head.dense.conv_cls.bias.data = torch.tensor([-9.0, 2.0])
    head.dense.conv_reg.bias.data = torch.tensor([1.0, 0.5, 2.0, 1.5])
    head.dense.conv_centerness.bias.data = torch.tensor([3.0])
    # Annotated at twice the size of the network input, and with a portrait image of another scale.
    images = [make_image(11, [], [], shape=(128, 192)), make_image(12, [], [], shape=(64, 96))]
    maps = [torch.zeros(2, 1, level.channels, *part).half() for level, part in zip(LEVELS, MAP_SHAPES, strict=True)]
    detections = detect_objects(head, FeatureCache(64, LEVELS, [Bucket(images, maps)]), [40, 50], batch_size=1)
    score = torch.tensor([2.0, 3.0]).sigmoid().prod().item()
    for image_id, scale in ((11, 2), (12, 1)):
        found = [entry for entry in detections if entry['image_id'] == image_id]
        assert {entry['category_id'] for entry in found} == {50}
        assert all(entry['score'] == pytest.approx(score) for entry in found)
        # The center of cell (1, 2) of C4 is (40, 24).
        expected = [scale * value for value in (40 - 16, 24 - 8, 16 + 32, 8 + 24)]
        assert any(entry['bbox'] == pytest.approx(expected, abs=1e-3) for entry in found)
        for entry in found:  # inside the image
            x, y, w, h = entry['bbox']
            assert min(x, y) >= 0 and x + w <= 96 * scale + 1e-3 and y + h <= 64 * scale + 1e-3


@pytest.mark.parametrize('name', ['width', 'epochs', 'batch_size', 'learning_rate', 'min_steps'])
def test_invalid_recipe(name):
    with pytest.raises(InputError, match='-4'):
        HeadRecipe(**{name: -4})


def test_width_that_is_no_multiple_of_4():
    with pytest.raises(InputError, match='18'):
        HeadRecipe(width=18)


def test_maps_of_a_single_cell():
    """The coarsest level of an image of 32 px, in a batch of one image."""
    head = FrozenDetectorHead(LEVELS, 1, 16).train()
    maps = [torch.randn(1, level.channels, 32 // level.stride, 32 // level.stride) for level in LEVELS]
    shapes = [(32 // level.stride, 32 // level.stride) for level in LEVELS]
    targets, distances = head.assign(torch.tensor([[2.0, 2, 30, 28]]), torch.tensor([0]), torch.zeros(0, 4), shapes)
    loss = head.loss(maps, targets[None], distances[None])
    loss.backward()
    assert loss.isfinite() and (targets == 0).any()
