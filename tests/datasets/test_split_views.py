import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ccop_mm.datasets import PackObjectViews, SplitTwoObjectViews
from ccop_mm.datasets.split_views import choose_reduction, resize_crop, snap_crop_box
from ccop_mm.utils import boxes as box_ops
from ccop_mm.utils.images import UnreadableImageError


def crop_config(**arguments):
    return dict(type='mmselfsup.ObjectResizedCrop', **arguments)


FLIP = dict(type='mmselfsup.ObjectFlip')


def make_results(image, boxes, **more):
    return dict(img=image, proposals=np.asarray(boxes, dtype=np.float32).reshape(-1, 4), **more)


def bright_bounds(view, level=127):
    """Returns the bounding box of the pixels above a gray level; None if there are none."""
    rows, columns = np.nonzero(view[..., 0] > level)
    return None if len(rows) == 0 else [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def smooth_image(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def test_boxes_match_their_pixels_in_both_views():
    # A filled rectangle goes through the same crops and flips as its box: the bounds agree within a pixel.
    rng = np.random.default_rng(0)
    np.random.seed(0)
    views = SplitTwoObjectViews([crop_config(size=(96, 112), max_clipped=1.0, min_area=0), FLIP])
    visible, flips = 0, 0
    for _ in range(1000):
        height, width = rng.integers(60, 200, 2)
        x, y = rng.integers(0, width - 12), rng.integers(0, height - 12)
        w, h = rng.integers(12, width - x + 1), rng.integers(12, height - y + 1)
        image = np.zeros((height, width, 3), np.uint8)
        image[y : y + h, x : x + w] = 255
        results = views(make_results(image, [[x, y, x + w, y + h]]))
        for view, name, flip in zip(results['img'], ('boxes_q', 'boxes_k'), results['flips'], strict=True):
            bounds, box = bright_bounds(view), results[name][0]
            if bounds is None:
                assert min(box[2] - box[0], box[3] - box[1]) <= 1
            else:
                np.testing.assert_allclose(box, bounds, atol=1)
                visible, flips = visible + 1, flips + flip
    assert visible > 1500
    assert 0.4 < flips / visible < 0.6


def test_boxes_equal_those_of_box_utils():
    # Reference with ccop_mm.utils.boxes, one view at a time: the same boxes are kept, with the same coordinates.
    image = np.zeros((120, 160, 3), np.uint8)
    boxes = np.array([[x, y, x + 30, y + 20] for y in range(0, 120, 15) for x in range(0, 160, 15)])
    boxes = boxes + np.random.default_rng(0).uniform(-1, 1, boxes.shape)  # none is exactly at a threshold
    split = SplitTwoObjectViews([crop_config(size=100), FLIP])
    np.random.seed(1)
    for _ in range(50):
        results = split(make_results(image, boxes))
        kept, expected = [], {}
        names = ('boxes_q', 'boxes_k')
        for crop_box, flip, name in zip(results['view_crop_boxes'], results['flips'], names, strict=True):
            unclipped = box_ops.crop_and_resize(torch.tensor(boxes).float(), torch.tensor(crop_box).float(), (100, 100))
            clipped = box_ops.clip(unclipped, (100, 100))
            area = box_ops.area(clipped)
            keep = (area >= 0.6 * box_ops.area(unclipped)) & (area >= 144)
            expected[name] = box_ops.flip_horizontal(clipped, 100) if flip else clipped
            kept.append(set(keep.nonzero().flatten().tolist()))
        common = sorted(kept[0] & kept[1])
        for name in names:
            np.testing.assert_allclose(results[name], expected[name][common], atol=1e-4)


def test_crops_are_resized_as_by_pillow():
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (90, 130, 3), dtype=np.uint8)
    for crop_box in ((0, 0, 130, 90), (3, 5, 120, 77), (40, 30, 60, 50)):
        expected = np.asarray(Image.fromarray(image).crop(crop_box).resize((48, 32), Image.Resampling.BILINEAR))
        for flip in (False, True):
            view = resize_crop(image, crop_box, (32, 48), flip)
            difference = np.abs(view.astype(int) - (expected[:, ::-1] if flip else expected))
            assert difference.max() <= 1
            assert view.transpose(2, 0, 1).flags.c_contiguous, 'packing requires no copy'


def test_views_are_flipped_or_unflipped_crops_of_the_image():
    image = np.random.default_rng(3).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    np.random.seed(3)
    views = SplitTwoObjectViews([crop_config(size=32), FLIP])
    seen_flips = set()
    for _ in range(8):
        results = views(make_results(image, []))
        for view, crop_box, flip in zip(results['img'], results['view_crop_boxes'], results['flips'], strict=True):
            expected = np.asarray(Image.fromarray(image).crop(crop_box).resize((32, 32), Image.Resampling.BILINEAR))
            assert np.abs(view.astype(int) - (expected[:, ::-1] if flip else expected)).max() <= 1
            seen_flips.add(flip)
    assert seen_flips == {True, False}


def test_reduced_decoding_of_a_large_jpeg_is_within_the_documented_error():
    image = smooth_image(1200, 1603)
    content = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    boxes = [[x, y, x + 300, y + 200] for x in range(0, 1200, 150) for y in range(0, 900, 150)]
    shared = dict(proposals=np.float32(boxes), proposal_img_shape=(1200, 1603))
    reduced_views = SplitTwoObjectViews([crop_config(size=64, scale=(0.3, 1.0)), FLIP])
    full_views = SplitTwoObjectViews([crop_config(size=64, scale=(0.3, 1.0)), FLIP], reduce_margin=None)
    for seed in range(5):
        np.random.seed(seed)
        reduced = reduced_views(dict(shared, img_bytes=content))
        assert all(side % 4 == 0 for crop_box in reduced['view_crop_boxes'] for side in crop_box)
        # The same crops at full resolution.
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        for view, crop_box, flip in zip(reduced['img'], reduced['view_crop_boxes'], reduced['flips'], strict=True):
            expected = resize_crop(decoded, crop_box, (64, 64)).astype(int)
            difference = np.abs(view - (expected[:, ::-1] if flip else expected))
            assert difference.mean() < 1.5
            assert np.percentile(difference, 99) < 8
        np.random.seed(seed)
        full = full_views(dict(shared, img_bytes=content))
        for crop_box, other in zip(reduced['view_crop_boxes'], full['view_crop_boxes'], strict=True):
            assert np.abs(np.subtract(crop_box, other)).max() < 16


def test_reduction_respects_the_margin():
    assert choose_reduction([(0, 0, 448, 900)], (224, 224), 2.0) == 1
    assert choose_reduction([(0, 0, 896, 900), (5, 5, 1000, 1000)], (224, 224), 2.0) == 2
    assert choose_reduction([(0, 0, 5000, 895)], (224, 224), 2.0) == 1
    assert choose_reduction([(0, 0, 5000, 5000)], (224, 224), 2.0) == 8
    for factor in (1, 2, 4, 8):
        x1, y1, x2, y2 = snap_crop_box((13, 27, 1603, 1199), factor)
        assert all(side % factor == 0 for side in (x1, y1, x2, y2))
        assert 0 <= 13 - x1 < factor and 0 <= 27 - y1 < factor
        assert 1603 - 2 * factor < x2 <= 1603 and 1199 - 2 * factor < y2 <= 1199


def test_image_of_another_size_raises():
    content = cv2.imencode('.jpg', smooth_image(40, 48))[1].tobytes()
    with pytest.raises(UnreadableImageError, match='48x40 .*50x40'):
        SplitTwoObjectViews([crop_config(size=16)])(
            dict(img_bytes=content, proposals=np.zeros((0, 4), np.float32), proposal_img_shape=(40, 50))
        )


def test_crops_are_sampled_again_until_enough_objects_are_common():
    image = np.zeros((100, 100, 3), np.uint8)
    boxes = [[12, 12, 32, 32], [68, 68, 88, 88], [12, 68, 32, 88]]
    steps = [crop_config(size=32, scale=(0.3, 0.4), min_area=16)]
    plain, redrawing = SplitTwoObjectViews(steps), SplitTwoObjectViews(steps, min_common=1, max_redraws=100)
    np.random.seed(5)
    num_without = sum(len(plain(make_results(image, boxes))['boxes_q']) == 0 for _ in range(100))
    assert num_without > 30
    results = [redrawing(make_results(image, boxes)) for _ in range(60)]
    assert all(len(one['boxes_q']) >= 1 for one in results)
    assert any(one['redraws'] for one in results) and any(one['redraws'] == 0 for one in results)
    # Unreachable minimum: max_redraws limits the attempts. Without proposals the crops are sampled once.
    unreachable = SplitTwoObjectViews(steps, min_common=3, max_redraws=4)
    assert unreachable(make_results(image, boxes))['redraws'] == 4
    assert unreachable(make_results(image, []))['redraws'] == 0


def test_packed_sample_contains_photometric_parameters_of_each_view():
    np.random.seed(6)
    results = SplitTwoObjectViews([crop_config(size=16), FLIP])(make_results(np.zeros((30, 40, 3), np.uint8), []))
    packed = PackObjectViews(pseudo_label_keys=['boxes_q', 'boxes_k'])(dict(results))
    assert [view.shape for view in packed['inputs']] == [(3, 16, 16)] * 2
    assert packed['photometric'].shape == (2, 11)
    assert packed['data_samples'].pseudo_label.boxes_q.shape == (0, 4)


@pytest.mark.parametrize('steps', [[], [FLIP], [crop_config(size=16), FLIP, FLIP]])
def test_transforms_must_start_with_a_crop(steps):
    names = [step['type'].rpartition('.')[2] for step in steps]
    with pytest.raises(ValueError, match='ObjectResizedCrop') as caught:
        SplitTwoObjectViews(steps)
    assert str(names) in str(caught.value)
