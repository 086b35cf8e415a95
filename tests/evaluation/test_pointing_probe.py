import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmselfsup.models.utils import SelfSupDataPreprocessor
from synthetic_scenes.scenes import write_scenes
from torch import nn

from ccop_mm.evaluation import measure_pointing_accuracy
from ccop_mm.evaluation.pointing_probe import ViewSampler, limit_images
from ccop_mm.utils.coco_json import read_annotated_images
from ccop_mm.utils.errors import InputError

SIZE = 64


class ColorModel(nn.Module):
    """Model whose stages are the input averaged over cells and scaled: similar colors have similar features."""

    def __init__(self, contrast=1.0):
        super().__init__()
        self.data_preprocessor = SelfSupDataPreprocessor(mean=(105.0,) * 3, std=(60.0,) * 3, bgr_to_rgb=True)
        self.contrast = nn.Parameter(torch.tensor(contrast))

    def backbone(self, x):
        return tuple(self.contrast * F.avg_pool2d(x, stride, ceil_mode=True) for stride in (4, 8, 16, 32))


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes')
    write_scenes(root, num_train=1, num_val=20, size=(96, 128))
    return root / 'annotations' / 'instances_val.json', root / 'images'


def write_bright_objects(folder, count=12):
    """Writes dark images with one bright rectangle, which remains the brightest region under any augmentation."""
    images, annotations = [], []
    for number in range(count):
        x, y = 10 + 37 * number % 60, 8 + 23 * number % 40
        image = np.full((80, 110, 3), 60, np.uint8)
        image[y : y + 30, x : x + 34] = 250
        cv2.imwrite(str(folder / f'{number}.png'), image)
        images.append(dict(id=number, file_name=f'{number}.png', width=110, height=80))
        annotations.append(dict(id=number, image_id=number, category_id=1, bbox=[x, y, 34, 30]))
    path = folder / 'bright.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=[])))
    return path


def test_distinct_objects_are_located(tmp_path):
    annotations = write_bright_objects(tmp_path)
    result = measure_pointing_accuracy(ColorModel(), annotations, tmp_path, size=SIZE, repeats=4, levels=('C2',))
    report = result.report()
    assert report['num_queries'] > 30 and report['num_objects'] <= report['num_images'] <= 12
    assert report['C2'] > 0.75  # strong color jitter sometimes saturates the whole image
    assert report['chance'] < 0.3


def test_constant_features_score_chance(scenes):
    result = measure_pointing_accuracy(ColorModel(contrast=0.0), *scenes, size=SIZE, repeats=4, levels=('C2',))
    assert result.report()['C2'] == pytest.approx(result.report()['chance'], abs=0.01)


def test_views_do_not_depend_on_model_and_batch_size(scenes):
    one = measure_pointing_accuracy(ColorModel(), *scenes, size=SIZE)
    torch.manual_seed(9)
    other = measure_pointing_accuracy(ColorModel(2.0), *scenes, size=SIZE, batch_size=3)
    order = [np.lexsort((result.area_fraction, result.image_index)) for result in (one, other)]
    np.testing.assert_array_equal(one.image_index[order[0]], other.image_index[order[1]])
    np.testing.assert_array_equal(one.area_fraction[order[0]], other.area_fraction[order[1]])
    # Cosine similarity does not depend on the factor of 2.
    for level in one.hits:
        np.testing.assert_array_equal(one.hits[level][order[0]], other.hits[level][order[1]])


def test_queries_match_the_sampled_views(scenes):
    """Both directions are scored, except for boxes above 40 % of the view in which they are located."""
    annotations, images = scenes
    sampler, expected = ViewSampler(SIZE, seed=5), []
    for index, annotated in enumerate(read_annotated_images(annotations, images)):
        for repeat in range(2):
            views = sampler.sample(cv2.imread(str(annotated.path)), annotated.boxes, index, repeat)
            for boxes in views.boxes:
                fractions = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / SIZE**2).tolist()
                expected += [value for value in fractions if value <= 0.4]
    result = measure_pointing_accuracy(ColorModel(), annotations, images, size=SIZE, repeats=2, seed=5)
    assert sorted(result.area_fraction.tolist()) == pytest.approx(sorted(expected))
    assert set(result.hits) == {'C3', 'C4', 'C5'}  # the model has no FPN
    assert result.area_fraction.max() <= 0.4


def test_views_depend_on_seed_image_and_repeat(scenes):
    annotated = read_annotated_images(*scenes)[0]
    image = cv2.imread(str(annotated.path))
    pairs = [ViewSampler(SIZE).sample(image, annotated.boxes, 0, repeat) for repeat in range(4)]
    again = ViewSampler(SIZE).sample(image, annotated.boxes, 0, 3)
    np.testing.assert_array_equal(pairs[3].images[0], again.images[0])
    assert not np.array_equal(pairs[0].images[0], pairs[1].images[0])
    assert not np.array_equal(pairs[0].images[0], pairs[0].images[1])
    assert not np.array_equal(pairs[0].images[0], ViewSampler(SIZE, seed=1).sample(image, annotated.boxes, 0).images[0])


def test_training_mode_and_global_random_states_are_restored(scenes):
    model = ColorModel()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    measure_pointing_accuracy(model.train(), *scenes, size=SIZE)
    assert model.training
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == np.random.get_state()[1].tolist()


def test_limit_images_returns_an_ordered_subset():
    images = list('abcdefgh')
    subset = limit_images(images, 3, seed=1)
    assert subset == sorted(subset) and len(subset) == 3
    assert all(images[index] == name for index, name in subset)
    assert limit_images(images, 9) == limit_images(images, None) == list(enumerate(images))


def test_bad_input(scenes, tmp_path):
    with pytest.raises(InputError, match='P6'):
        measure_pointing_accuracy(ColorModel(), *scenes, levels=('P6',))
    with pytest.raises(InputError, match='64, 16, 0 and 0.4'):
        measure_pointing_accuracy(ColorModel(), *scenes, size=64, repeats=0)
    with pytest.raises(InputError, match='20 images'):
        measure_pointing_accuracy(ColorModel(), *scenes, size=SIZE, max_area_fraction=1e-6)
    with pytest.raises(InputError, match='got 0'):
        measure_pointing_accuracy(ColorModel(), *scenes, max_images=0)
    with pytest.raises(InputError, match='cuda:99'):
        measure_pointing_accuracy(ColorModel(), *scenes, device='cuda:99')
