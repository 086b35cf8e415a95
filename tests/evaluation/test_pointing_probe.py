import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmselfsup.models.utils import SelfSupDataPreprocessor
from torch import nn

from ccop_mm.datasets.scenes import write_scenes
from ccop_mm.errors import InputError
from ccop_mm.evaluation import measure_pointing
from ccop_mm.evaluation.annotated_photos import read_annotated_photos
from ccop_mm.evaluation.pointing_probe import ViewDrawer, pick_photos

SIZE = 64


class Colors(nn.Module):
    """Every stage is the input averaged over cells, sharpened: a color is like itself and like no other."""

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


def planted(folder, count=12):
    """Dark photos with one bright square: which is which no augmentation takes away."""
    images, annotations = [], []
    for number in range(count):
        x, y = 10 + 37 * number % 60, 8 + 23 * number % 40
        photo = np.full((80, 110, 3), 60, np.uint8)
        photo[y : y + 30, x : x + 34] = 250
        cv2.imwrite(str(folder / f'{number}.png'), photo)
        images.append(dict(id=number, file_name=f'{number}.png', width=110, height=80))
        annotations.append(dict(id=number, image_id=number, category_id=1, bbox=[x, y, 34, 30]))
    path = folder / 'planted.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=[])))
    return path


def test_planted_objects_are_found(tmp_path):
    result = measure_pointing(Colors(), planted(tmp_path), tmp_path, size=SIZE, repeats=4, levels=('C2',))
    report = result.report()
    assert report['num_queries'] > 30 and report['num_objects'] <= report['num_photos'] <= 12
    assert report['C2'] > 0.75  # strong color jitter now and then makes all of a photo bright
    assert report['chance'] < 0.3


def test_a_network_that_sees_nothing_scores_the_share_of_the_cells(scenes):
    result = measure_pointing(Colors(contrast=0.0), *scenes, size=SIZE, repeats=4, levels=('C2',))
    assert result.report()['C2'] == pytest.approx(result.report()['chance'], abs=0.01)


def test_views_are_the_same_for_every_model_and_batch_size(scenes):
    one = measure_pointing(Colors(), *scenes, size=SIZE)
    torch.manual_seed(9)
    other = measure_pointing(Colors(2.0), *scenes, size=SIZE, batch_size=3)
    order = [np.lexsort((result.share, result.photo)) for result in (one, other)]
    np.testing.assert_array_equal(one.photo[order[0]], other.photo[order[1]])
    np.testing.assert_array_equal(one.share[order[0]], other.share[order[1]])
    # cosine does not see the factor of 2
    for level in one.hits:
        np.testing.assert_array_equal(one.hits[level][order[0]], other.hits[level][order[1]])


def test_what_is_asked(scenes):
    """Counts and shares against the views themselves: both directions, none above 40 % of the view pointed into."""
    annotations, images = scenes
    drawer, shares = ViewDrawer(SIZE, seed=5), []
    for index, photo in enumerate(read_annotated_photos(annotations, images)):
        for repeat in range(2):
            views = drawer.draw(cv2.imread(str(photo.path)), photo.boxes, index, repeat)
            for boxes in views.boxes:
                share = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / SIZE**2).tolist()
                shares += [value for value in share if value <= 0.4]
    result = measure_pointing(Colors(), annotations, images, size=SIZE, repeats=2, seed=5)
    assert sorted(result.share.tolist()) == pytest.approx(sorted(shares))
    assert set(result.hits) == {'C3', 'C4', 'C5'}  # no pyramid
    assert result.share.max() <= 0.4


def test_views_are_drawn_from_seed_photo_and_repeat(scenes):
    photo = read_annotated_photos(*scenes)[0]
    image = cv2.imread(str(photo.path))
    pairs = [ViewDrawer(SIZE).draw(image, photo.boxes, 0, repeat) for repeat in range(4)]
    again = ViewDrawer(SIZE).draw(image, photo.boxes, 0, 3)
    np.testing.assert_array_equal(pairs[3].images[0], again.images[0])
    assert not np.array_equal(pairs[0].images[0], pairs[1].images[0])
    assert not np.array_equal(pairs[0].images[0], pairs[0].images[1])
    assert not np.array_equal(pairs[0].images[0], ViewDrawer(SIZE, seed=1).draw(image, photo.boxes, 0).images[0])


def test_mode_is_restored_and_random_numbers_are_left_alone(scenes):
    model = Colors()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    measure_pointing(model.train(), *scenes, size=SIZE)
    assert model.training
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == np.random.get_state()[1].tolist()


def test_fewer_photos_are_a_subset():
    photos = list('abcdefgh')
    some = pick_photos(photos, 3, seed=1)
    assert some == sorted(some) and len(some) == 3
    assert all(photos[index] == name for index, name in some)
    assert pick_photos(photos, 9) == pick_photos(photos, None) == list(enumerate(photos))


def test_bad_input(scenes, tmp_path):
    with pytest.raises(InputError, match='levels are C2, .*; got P6'):
        measure_pointing(Colors(), *scenes, levels=('P6',))
    with pytest.raises(InputError, match='at least 1'):
        measure_pointing(Colors(), *scenes, repeats=0)
    with pytest.raises(InputError, match='no object of 20 photos is in both views'):
        measure_pointing(Colors(), *scenes, size=SIZE, max_share=1e-6)
    with pytest.raises(InputError, match='at least 1 photo'):
        measure_pointing(Colors(), *scenes, max_photos=0)
    with pytest.raises(InputError, match='device'):
        measure_pointing(Colors(), *scenes, device='cuda:99')
