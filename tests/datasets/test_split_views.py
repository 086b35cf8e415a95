import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ccop_mm import boxes as box_ops
from ccop_mm.datasets import PackObjectViews, SplitTwoObjectViews
from ccop_mm.datasets.split_views import choose_reduction, resize_window, snap
from ccop_mm.proposals.sources import BadPhoto


def crop(**arguments):
    return dict(type='mmselfsup.ObjectResizedCrop', **arguments)


FLIP = dict(type='mmselfsup.ObjectFlip')


def results_of(image, boxes, **more):
    return dict(img=image, proposals=np.asarray(boxes, dtype=np.float32).reshape(-1, 4), **more)


def drawn_bounds(view, level=127):
    rows, columns = np.nonzero(view[..., 0] > level)
    return None if len(rows) == 0 else [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def smooth_photo(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def test_boxes_follow_their_pixels_in_both_views():
    # Each box is drawn as a filled image and goes through the same crops and flips: bounds agree to a pixel.
    rng = np.random.default_rng(0)
    np.random.seed(0)
    views = SplitTwoObjectViews([crop(size=(96, 112), max_clipped=1.0, min_area=0), FLIP])
    seen, flips = 0, 0
    for _ in range(1000):
        height, width = rng.integers(60, 200, 2)
        x, y = rng.integers(0, width - 12), rng.integers(0, height - 12)
        w, h = rng.integers(12, width - x + 1), rng.integers(12, height - y + 1)
        image = np.zeros((height, width, 3), np.uint8)
        image[y : y + h, x : x + w] = 255
        results = views(results_of(image, [[x, y, x + w, y + h]]))
        for view, name, flip in zip(results['img'], ('boxes_q', 'boxes_k'), results['flips'], strict=True):
            bounds, box = drawn_bounds(view), results[name][0]
            if bounds is None:
                assert min(box[2] - box[0], box[3] - box[1]) <= 1
            else:
                np.testing.assert_allclose(box, bounds, atol=1)
                seen, flips = seen + 1, flips + flip
    assert seen > 1500
    assert 0.4 < flips / seen < 0.6


def test_boxes_are_those_of_box_geometry():
    # Written out by ccop_mm.boxes for one view at a time: the same boxes stay, at the same places.
    image = np.zeros((120, 160, 3), np.uint8)
    boxes = np.array([[x, y, x + 30, y + 20] for y in range(0, 120, 15) for x in range(0, 160, 15)])
    boxes = boxes + np.random.default_rng(0).uniform(-1, 1, boxes.shape)  # none lies on a rule's limit
    split = SplitTwoObjectViews([crop(size=100), FLIP])
    np.random.seed(1)
    for _ in range(50):
        results = split(results_of(image, boxes))
        ids, shown = [], {}
        names = ('boxes_q', 'boxes_k')
        for window, flipped, name in zip(results['view_windows'], results['flips'], names, strict=True):
            whole = box_ops.crop_and_resize(torch.tensor(boxes).float(), torch.tensor(window).float(), (100, 100))
            seen = box_ops.clip(whole, (100, 100))
            keep = (box_ops.area(seen) >= 0.6 * box_ops.area(whole)) & (box_ops.area(seen) >= 144)
            shown[name] = box_ops.flip_horizontal(seen, 100) if flipped else seen
            ids.append(set(keep.nonzero().flatten().tolist()))
        common = sorted(ids[0] & ids[1])
        for name in ('boxes_q', 'boxes_k'):
            np.testing.assert_allclose(results[name], shown[name][common], atol=1e-4)


def test_windows_resize_as_pillow_does():
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (90, 130, 3), dtype=np.uint8)
    for window in ((0, 0, 130, 90), (3, 5, 120, 77), (40, 30, 60, 50)):
        expected = np.asarray(Image.fromarray(image).crop(window).resize((48, 32), Image.Resampling.BILINEAR))
        for flip in (False, True):
            view = resize_window(image, window, (32, 48), flip)
            difference = np.abs(view.astype(int) - (expected[:, ::-1] if flip else expected))
            assert difference.max() <= 1
            assert view.transpose(2, 0, 1).flags.c_contiguous, 'packing would copy'


def test_pixels_of_both_views_are_windows_of_the_photo_flipped_or_not():
    image = np.random.default_rng(3).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    np.random.seed(3)
    views = SplitTwoObjectViews([crop(size=32), FLIP])
    seen = set()
    for _ in range(8):
        results = views(results_of(image, []))
        for view, window, flip in zip(results['img'], results['view_windows'], results['flips'], strict=True):
            expected = np.asarray(Image.fromarray(image).crop(window).resize((32, 32), Image.Resampling.BILINEAR))
            assert np.abs(view.astype(int) - (expected[:, ::-1] if flip else expected)).max() <= 1
            seen.add(flip)
    assert seen == {True, False}


def test_a_large_jpeg_is_decoded_smaller_within_the_stated_error():
    image = smooth_photo(1200, 1603)
    content = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    boxes = [[x, y, x + 300, y + 200] for x in range(0, 1200, 150) for y in range(0, 900, 150)]
    shared = dict(proposals=np.float32(boxes), proposal_img_shape=(1200, 1603))
    views = SplitTwoObjectViews([crop(size=64, scale=(0.3, 1.0)), FLIP])
    whole = SplitTwoObjectViews([crop(size=64, scale=(0.3, 1.0)), FLIP], reduce_margin=None)
    for seed in range(5):
        np.random.seed(seed)
        reduced = views(dict(shared, img_bytes=content))
        assert all(side % 4 == 0 for window in reduced['view_windows'] for side in window)
        # The same windows from all pixels.
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        for view, window, flip in zip(reduced['img'], reduced['view_windows'], reduced['flips'], strict=True):
            expected = resize_window(decoded, window, (64, 64)).astype(int)
            difference = np.abs(view - (expected[:, ::-1] if flip else expected))
            assert difference.mean() < 1.5
            assert np.percentile(difference, 99) < 8
        np.random.seed(seed)
        full = whole(dict(shared, img_bytes=content))
        for window, other in zip(reduced['view_windows'], full['view_windows'], strict=True):
            assert np.abs(np.subtract(window, other)).max() < 16


def test_reduction_leaves_the_margin():
    assert choose_reduction([(0, 0, 448, 900)], (224, 224), 2.0) == 1
    assert choose_reduction([(0, 0, 896, 900), (5, 5, 1000, 1000)], (224, 224), 2.0) == 2
    assert choose_reduction([(0, 0, 5000, 895)], (224, 224), 2.0) == 1
    assert choose_reduction([(0, 0, 5000, 5000)], (224, 224), 2.0) == 8
    for factor in (1, 2, 4, 8):
        x1, y1, x2, y2 = snap((13, 27, 1603, 1199), factor)
        assert all(side % factor == 0 for side in (x1, y1, x2, y2))
        assert 0 <= 13 - x1 < factor and 0 <= 27 - y1 < factor and x2 <= 1603 and y2 <= 1199


def test_a_photo_of_another_size_is_bad():
    content = cv2.imencode('.jpg', smooth_photo(40, 48))[1].tobytes()
    with pytest.raises(BadPhoto, match='48x40 pixels now, 50x40 when its proposals were made'):
        SplitTwoObjectViews([crop(size=16)])(
            dict(img_bytes=content, proposals=np.zeros((0, 4), np.float32), proposal_img_shape=(40, 50))
        )


def test_redraws_end_with_enough_common_objects_or_the_best():
    image = np.zeros((100, 100, 3), np.uint8)
    boxes = [[12, 12, 32, 32], [68, 68, 88, 88], [12, 68, 32, 88]]
    steps = [crop(size=32, scale=(0.3, 0.4), min_area=16)]
    plain, wanting = SplitTwoObjectViews(steps), SplitTwoObjectViews(steps, min_common=1, max_redraws=100)
    np.random.seed(5)
    none = sum(len(plain(results_of(image, boxes))['boxes_q']) == 0 for _ in range(100))
    assert none > 30
    results = [wanting(results_of(image, boxes)) for _ in range(60)]
    assert all(len(one['boxes_q']) >= 1 for one in results)
    assert any(one['redraws'] for one in results) and any(one['redraws'] == 0 for one in results)
    # Never satisfied: the draws come to an end; without any proposal nothing is drawn anew.
    impossible = SplitTwoObjectViews(steps, min_common=3, max_redraws=4)
    assert impossible(results_of(image, boxes))['redraws'] == 4
    assert impossible(results_of(image, []))['redraws'] == 0


def test_packed_with_one_row_of_parameters_for_each_view():
    np.random.seed(6)
    results = SplitTwoObjectViews([crop(size=16), FLIP])(results_of(np.zeros((30, 40, 3), np.uint8), []))
    packed = PackObjectViews(pseudo_label_keys=['boxes_q', 'boxes_k'])(dict(results))
    assert [view.shape for view in packed['inputs']] == [(3, 16, 16)] * 2
    assert packed['photometric'].shape == (2, 11)
    assert packed['data_samples'].pseudo_label.boxes_q.shape == (0, 4)


@pytest.mark.parametrize('steps', [[], [FLIP], [crop(size=16), FLIP, FLIP]])
def test_a_view_begins_with_its_crop(steps):
    with pytest.raises(ValueError, match='begins with ObjectResizedCrop'):
        SplitTwoObjectViews(steps)
