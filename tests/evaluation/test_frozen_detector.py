import json
import random

import cv2
import numpy as np
import pytest
import torch
from mmselfsup.models.utils import SelfSupDataPreprocessor
from torch import nn

from ccop_mm.evaluation.frozen_detector import (
    TASKS,
    check_memory,
    measure_frozen_detector,
    read_frozen_detector_data,
)
from ccop_mm.evaluation.frozen_detector_ap import box_ap
from ccop_mm.evaluation.frozen_detector_features import FrozenNetwork
from ccop_mm.evaluation.frozen_detector_head import HeadRecipe
from ccop_mm.utils.coco_json import read_json
from ccop_mm.utils.errors import InputError

SIZE = 64
QUICK = HeadRecipe(width=16, epochs=1, min_steps=0)
LONG = HeadRecipe(min_steps=600, batch_size=8, learning_rate=1e-2)
COLORS = {3: (250, 120, 120), 8: (120, 250, 120)}


class PlantedModel(nn.Module):
    """Model whose feature maps contain the boxes: for each cell the color of its pixel and, inside an object, the
    distances to its four sides. Objects are uniform rectangles that do not touch, on a black background."""

    def __init__(self):
        super().__init__()
        self.data_preprocessor = SelfSupDataPreprocessor(mean=(0.0,) * 3, std=(255.0,) * 3, bgr_to_rgb=True)
        self.norm = nn.BatchNorm2d(1).eval()

    def backbone(self, x):
        mask = (x.amax(dim=1, keepdim=True) > 0.2).float()
        sides = []
        for dims, width in (((3,), x.shape[3]), ((2,), x.shape[2])):
            for flipped in (False, True):
                part = mask.flip(dims) if flipped else mask
                lengths, run = [], torch.zeros_like(part.narrow(dims[0], 0, 1))
                for index in range(width):
                    column = part.narrow(dims[0], index, 1)
                    run = (run + column) * column
                    lengths.append(run)
                run = torch.cat(lengths, dim=dims[0])
                sides.append(run.flip(dims) if flipped else run)
        features = torch.cat([x, mask, *sides], dim=1)
        return tuple(features[:, :, stride // 2 :: stride, stride // 2 :: stride] for stride in (4, 8, 16, 32))


class BlindModel(PlantedModel):
    """Model whose feature maps contain noise that depends on the number of bright pixels, but not on where they are."""

    def backbone(self, x):
        seed = int((x > 0.2).sum())
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randn(len(x), 8, x.shape[2] // stride, x.shape[3] // stride, generator=generator)
            for stride in (4, 8, 16, 32)
        )


def write_dataset(folder, name, count, seed, shuffled=False):
    """Writes images with one to three rectangles; ``shuffled`` assigns the boxes of each image to another image."""
    rng = np.random.default_rng(seed)
    (folder / name).mkdir()
    images, boxes = [], []
    for number in range(count):
        height, width = [(SIZE, 96), (SIZE, 90), (96, SIZE)][number % 3]
        image = np.zeros((height, width, 3), np.uint8)
        found = []
        for _ in range(20):
            x, y = rng.integers(0, [width - 20, height - 20])
            w, h = rng.integers(18, [min(60, width - x), min(60, height - y)])
            region = image[max(y - 2, 0) : y + h + 2, max(x - 2, 0) : x + w + 2]
            if len(found) < number % 3 + 1 and not region.any():
                category_id = int(rng.choice(list(COLORS)))
                image[y : y + h, x : x + w] = COLORS[category_id]
                found.append((category_id, [int(value) for value in (x, y, w, h)]))
        cv2.imwrite(str(folder / name / f'{number}.png'), image)
        images.append(dict(id=number, file_name=f'{number}.png', width=width, height=height))
        boxes.append(found)
    if shuffled:  # a rotation by 3 keeps the shape of the images
        boxes = boxes[3:] + boxes[:3]
    annotations = [
        dict(id=10 * image['id'] + index, image_id=image['id'], category_id=category_id, bbox=box)
        for image, found in zip(images, boxes, strict=True)
        for index, (category_id, box) in enumerate(found)
    ]
    categories = [dict(id=category_id, name=f'class {category_id}') for category_id in COLORS]
    path = folder / f'{name}.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return path, folder / name


@pytest.fixture(scope='module')
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp('planted')
    return {
        'train': write_dataset(folder, 'train', 240, 0),
        'shuffled': write_dataset(folder, 'shuffled', 240, 0, shuffled=True),
        'val': write_dataset(folder, 'val', 60, 1),
    }


def measure(datasets, model, train='train', **options):
    data = read_frozen_detector_data(*datasets[train], *datasets['val'])
    options = dict(size=SIZE, recipe=QUICK) | options
    return measure_frozen_detector(model, data, **options)


@pytest.mark.slow
def test_planted_boxes_are_detected(datasets):
    result = measure(datasets, PlantedModel(), recipe=LONG)
    for task in TASKS:
        assert result.metrics[task]['AP'][0] > 0.9
        assert result.metrics[task]['AP50'][0] > 0.99
    assert result.settings['levels'] == ['C3', 'C4', 'C5']


@pytest.mark.slow
@pytest.mark.parametrize('model, train', [(PlantedModel, 'shuffled'), (BlindModel, 'train')])
def test_chance(datasets, model, train):
    """Boxes of other images, and features that do not depend on the boxes."""
    result = measure(datasets, model(), train, recipe=LONG, tasks=('objects',))
    assert result.metrics['objects']['AP'][0] < 0.03
    assert result.metrics['objects']['AP50'][0] < 0.1


def test_metrics_are_those_of_the_detections(datasets):
    result = measure(datasets, PlantedModel(), seeds=(3, 1))
    content = read_json(datasets['val'][0])
    assert list(result.metrics) == list(TASKS) and result.seeds == [3, 1]
    for task, metrics in result.metrics.items():
        for number, detections in enumerate(result.detections[task]):
            expected = box_ap(content, detections, class_agnostic=task == 'objects')
            assert {name: values[number] for name, values in metrics.items()} == expected
            assert {entry['category_id'] for entry in detections} <= set(COLORS)
    assert {entry['category_id'] for entry in result.detections['objects'][0]} == {min(COLORS)}
    assert {name: result.settings[name] for name in ('num_train_images', 'num_images', 'size', 'epochs')} == dict(
        num_train_images=240, num_images=60, size=SIZE, epochs=1
    )
    assert set(result.seconds) == {'features', 'heads'}


def test_reproducible_by_seed_and_without_side_effects(datasets):
    model = PlantedModel()
    model.train()
    model.norm.eval()
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    results = [measure(datasets, model, tasks=('objects',), seeds=seeds) for seeds in ((0, 1), (1,))]
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    assert model.training and not model.norm.training
    first, second = results[0].detections['objects']
    assert first != second
    assert results[1].detections['objects'] == [second]


def test_scale_and_shift_of_the_features_do_not_matter(datasets):
    class Scaled(PlantedModel):
        def backbone(self, x):
            return tuple(1000 * part - 300 for part in super().backbone(x))

    expected, found = (measure(datasets, model(), tasks=('objects',)) for model in (PlantedModel, Scaled))
    assert found.metrics['objects']['AP50'] == pytest.approx(expected.metrics['objects']['AP50'], abs=0.02)


def test_features_of_the_neck(datasets):
    model = PlantedModel()
    model.neck = lambda maps: maps[1:3]
    result = measure(datasets, model, tasks=('objects',), features='neck', flip=False)
    assert result.settings['levels'] == ['P3', 'P4'] and result.settings['flip'] is False


def test_images_without_boxes_crowds_and_unknown_classes(tmp_path):
    """A training image without boxes, a crowd region in each set, and a class without training boxes."""
    datasets = {'train': write_dataset(tmp_path, 'train', 12, 0), 'val': write_dataset(tmp_path, 'val', 6, 1)}
    for name, image_id in (('train', 4), ('val', 2)):
        path = datasets[name][0]
        content = json.loads(path.read_text())
        kept = [entry for entry in content['annotations'] if entry['image_id'] != image_id]
        crowd = dict(id=999, image_id=image_id, category_id=3, bbox=[0, 0, 40, 40], iscrowd=1)
        content['annotations'] = [*kept, crowd]
        if name == 'val':
            content['annotations'][0]['category_id'] = 77
            content['categories'].append(dict(id=77, name='new'))
        path.write_text(json.dumps(content))
    result = measure(datasets, PlantedModel())
    assert (result.settings['num_train_images'], result.settings['num_images']) == (12, 6)
    assert all(
        0 <= value <= 1 for metrics in result.metrics.values() for values in metrics.values() for value in values
    )
    images = {entry['image_id'] for entry in result.detections['objects'][0]}
    assert 2 in images  # also evaluated; what lies in the crowd region does not count


def test_unreadable_images_are_not_evaluated(tmp_path):
    datasets = {'train': write_dataset(tmp_path, 'train', 6, 0), 'val': write_dataset(tmp_path, 'val', 6, 1)}
    (datasets['val'][1] / '3.png').write_bytes(b'no image')
    result = measure(datasets, PlantedModel(), tasks=('objects',))
    assert result.settings['num_images'] == 5
    detections = result.detections['objects'][0]
    expected = box_ap(read_json(datasets['val'][0]), detections, {0, 1, 2, 4, 5}, class_agnostic=True)
    assert result.metrics['objects']['AP'] == [expected['AP']]


def test_limits(datasets):
    data = read_frozen_detector_data(*datasets['train'], *datasets['val'], max_train_images=7, max_images=5)
    result = measure_frozen_detector(PlantedModel(), data, size=SIZE, recipe=QUICK, tasks=('classes',))
    assert (result.settings['num_train_images'], result.settings['num_images']) == (7, 5)
    with pytest.raises(InputError, match='got 0'):
        read_frozen_detector_data(*datasets['train'], *datasets['val'], max_train_images=0)


def test_memory_is_checked_before_the_features_are_computed(datasets, monkeypatch):
    monkeypatch.setattr('ccop_mm.evaluation.frozen_detector.measure_statistics', lambda *args: pytest.fail('computed'))
    # C3 to C5 of an image padded to 64 x 96 or 96 x 64: 96 + 24 + 6 cells, 8 channels, 2 bytes; 2 views for training.
    needed = (2 * 240 + 60) * 126 * 8 * 2
    with pytest.raises(InputError, match='maximum of 0.001 GB') as caught:
        measure(datasets, PlantedModel(), max_memory=0.001)
    assert f'{needed / 1e9:.1f} GB' in str(caught.value)
    network = FrozenNetwork(PlantedModel().eval())
    data = read_frozen_detector_data(*datasets['train'], *datasets['val'])
    check_memory(network, data, SIZE, True, needed / 1e9)
    with pytest.raises(InputError, match='GB'):
        check_memory(network, data, SIZE, True, (needed - 1) / 1e9)
    check_memory(network, data, SIZE, False, (needed - 1) / 1e9)


@pytest.mark.parametrize(
    'options, value',
    [
        (dict(size=0), '0, 32 and 8'),
        (dict(batch_size=-1), '64, -1 and 8'),
        (dict(max_memory=0), '64, 32 and 0'),
        (dict(tasks=()), 'got none'),
        (dict(tasks=('objects', 'masks')), 'masks'),
        (dict(seeds=()), r'\[\]'),
        (dict(seeds=(0, -4)), '-4'),
        (dict(seeds=(2, 5, 2)), '2, 5, 2'),
        (dict(features='head'), "'head'"),
        (dict(device='cuda:77'), 'cuda:77'),
    ],
)
def test_invalid_arguments(datasets, options, value):
    with pytest.raises(InputError, match=value):
        measure(datasets, PlantedModel(), **options)


def test_sets_that_do_not_fit(datasets, tmp_path):
    with pytest.raises(InputError, match=r'60 images .*0\.png'):
        read_frozen_detector_data(*datasets['val'], *datasets['val'])
    content = read_json(datasets['val'][0])
    content['categories'][0]['name'] = 'dog'
    (tmp_path / 'other.json').write_text(json.dumps(content))
    with pytest.raises(InputError, match="3 is 'class 3' .* but 'dog'"):
        read_frozen_detector_data(*datasets['train'], tmp_path / 'other.json', datasets['val'][1])
    with pytest.raises(InputError, match=r'absent\.json'):
        read_frozen_detector_data(tmp_path / 'absent.json', tmp_path, *datasets['val'])
