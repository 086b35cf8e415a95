import cv2
import numpy as np
import pytest
import torch
from mmselfsup.registry import TRANSFORMS
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from ccop_mm.datasets import LoadUnlabeledImage, ObjectFlip, ObjectResizedCrop, TwoObjectViews
from ccop_mm.datasets.transforms import sample_crop_box
from ccop_mm.utils import boxes as box_ops
from ccop_mm.utils.images import UnreadableImageError


def make_results(image, boxes):
    return dict(
        img=image,
        img_shape=image.shape[:2],
        proposals=np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
        proposal_ids=np.arange(len(boxes)),
    )


def bright_bounds(view, level=127):
    """Returns the bounding box of the pixels above a gray level; None if there are none."""
    rows, columns = np.nonzero(view[..., 0] > level)
    return None if len(rows) == 0 else [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_boxes_match_their_pixels():
    # A filled rectangle goes through the same crop, resize and flip as its box: the bounds agree within a pixel.
    rng = np.random.default_rng(0)
    np.random.seed(0)
    crop, flip = ObjectResizedCrop(size=(96, 112), max_clipped=1.0, min_area=0), ObjectFlip()
    visible, flips = 0, 0
    for _ in range(300):
        height, width = rng.integers(60, 200, 2)
        x, y = rng.integers(0, width - 12), rng.integers(0, height - 12)
        w, h = rng.integers(12, width - x + 1), rng.integers(12, height - y + 1)
        image = np.zeros((height, width, 3), np.uint8)
        image[y : y + h, x : x + w] = 255
        results = flip(crop(make_results(image, [[x, y, x + w, y + h]])))
        assert results['img'].shape == (96, 112, 3)
        bounds = bright_bounds(results['img'])
        box = results['proposals'][0]
        if bounds is None:
            assert min(box[2] - box[0], box[3] - box[1]) <= 1
        else:
            np.testing.assert_allclose(box, bounds, atol=1)
            visible, flips = visible + 1, flips + results['flip']
    assert visible > 200
    assert 0.35 < flips / visible < 0.65


def test_crops_have_the_distribution_of_torchvision():
    np.random.seed(1)
    torch.manual_seed(1)
    image = torch.zeros(3, 427, 640)
    ours = np.array([sample_crop_box(427, 640, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)], dtype=float)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)], dtype=float
    )  # y, x, h, w
    for ours_column, theirs_column in [
        (ours[:, 0], theirs[:, 1]),
        (ours[:, 1], theirs[:, 0]),
        (ours[:, 2] - ours[:, 0], theirs[:, 3]),
        (ours[:, 3] - ours[:, 1], theirs[:, 2]),
    ]:
        assert ks_2samp(ours_column, theirs_column).pvalue > 1e-4


@pytest.mark.parametrize('height, width, crop_box', [(10, 400, (193, 0, 206, 10)), (400, 10, (0, 193, 10, 206))])
def test_extreme_aspect_ratios_fall_back_to_the_central_crop(height, width, crop_box):
    np.random.seed(0)
    assert sample_crop_box(height, width, (1.0, 1.0), (3 / 4, 4 / 3)) == crop_box


def test_crop_is_resized_by_pillow():
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (80, 120, 3), dtype=np.uint8)
    np.random.seed(2)
    results = ObjectResizedCrop(size=32)(make_results(image, []))
    x1, y1, x2, y2 = results['view_crop_box']
    expected = Image.fromarray(image).crop((x1, y1, x2, y2)).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(results['img'], np.asarray(expected))


def test_clipped_and_small_boxes_are_dropped():
    # The crop is the whole image, enlarged twice: only the boxes themselves determine the result.
    image = np.zeros((50, 50, 3), np.uint8)
    boxes = [[0, 0, 6, 6], [0, 0, 5.9, 6], [-4, 0, 6, 10], [-4.1, 0, 6, 10], [60, 60, 80, 80]]
    results = ObjectResizedCrop(size=100, scale=(1, 1), ratio=(1, 1))(make_results(image, boxes))
    assert results['proposal_ids'].tolist() == [0, 2]  # exactly 12 x 12 px, and exactly 40 % clipped
    np.testing.assert_allclose(results['proposals'], [[0, 0, 12, 12], [0, 0, 12, 20]], atol=1e-4)


def test_both_views_contain_the_same_objects_row_by_row():
    # Each object has a unique gray level, by which its pixels identify it.
    np.random.seed(3)
    image = np.zeros((120, 160, 3), np.uint8)
    boxes = [[x, y, x + 16, y + 16] for y in range(0, 120, 20) for x in range(0, 160, 20)]
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2] = 100 + number
    views = TwoObjectViews([dict(type='mmselfsup.ObjectResizedCrop', size=128), dict(type='mmselfsup.ObjectFlip')])
    matched = 0
    for _ in range(40):
        results = views(make_results(image, boxes))
        assert len(results['img']) == 2
        assert results['boxes_q'].shape == results['boxes_k'].shape
        for box_q, box_k in zip(results['boxes_q'], results['boxes_k'], strict=True):
            levels = []
            for view, box in zip(results['img'], (box_q, box_k), strict=True):
                x, y = ((box[:2] + box[2:]) / 2).astype(int)
                levels.append(int(view[y, x, 0]))
            assert levels[0] == pytest.approx(levels[1], abs=1)
            matched += 1
    assert matched > 200


def test_photometric_transforms_of_mmselfsup_do_not_change_boxes():
    np.random.seed(4)
    image = np.random.default_rng(4).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    transforms = [
        dict(
            type='RandomApply',
            transforms=[dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)],
        ),
        dict(type='RandomGrayscale', prob=1.0, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989)),
        dict(type='RandomGaussianBlur', sigma_min=0.1, sigma_max=2.0, prob=1.0),
    ]
    with TRANSFORMS.switch_scope_and_registry('mmselfsup'):
        results = TwoObjectViews(transforms)(make_results(image, [[1, 2, 30, 40]]))
    np.testing.assert_array_equal(results['boxes_q'], [[1, 2, 30, 40]])
    for view in results['img']:
        assert np.ptp(view, axis=2).max() == 0, 'all three channels are equal'
        assert view.std() < image.std(), 'the view is blurred'


def test_image_size_is_checked_against_the_proposals(tmp_path):
    path = tmp_path / 'image.png'
    image = np.random.default_rng(5).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    cv2.imwrite(str(path), image)
    np.testing.assert_array_equal(LoadUnlabeledImage()(dict(img_path=str(path)))['img'], image)
    assert LoadUnlabeledImage()(dict(img_path=str(path), proposal_img_shape=(20, 30)))['img_shape'] == (20, 30)
    with pytest.raises(UnreadableImageError, match='30x20 .*40x20'):
        LoadUnlabeledImage()(dict(img_path=str(path), proposal_img_shape=(20, 40)))


def test_flip_mirrors_image_and_boxes(generator):
    image = torch.randint(0, 256, (10, 20, 3), generator=generator, dtype=torch.uint8).numpy()
    results = ObjectFlip(prob=1.0)(make_results(image, [[2, 3, 7, 9]]))
    np.testing.assert_array_equal(results['img'], image[:, ::-1])
    assert results['proposals'].tolist() == [[13, 3, 18, 9]]
    assert results['proposals'].tolist() == box_ops.flip_horizontal(torch.tensor([[2.0, 3, 7, 9]]), 20).tolist()
