"""Photos to a file: the same bytes whatever happens on the way."""

import json
import multiprocessing
import shutil
import signal
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ccop_mm.boxes import pairwise_iou
from ccop_mm.errors import InputError
from ccop_mm.proposals import ProposalStore, image_id_of, list_photos, propose
from ccop_mm.proposals.journal import Journal
from ccop_mm.proposals.run import run
from ccop_mm.proposals.select import filter_boxes, merge_boxes, sample_boxes

needs_sigkill = pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')


def quiet_run(source, out, **options):
    """By the slower engine, which leaves time to kill it."""
    return run(list_photos(source), out, progress=False, **{'workers': 1, 'engine': 'opencv', **options})


def expected_boxes(image, image_id, max_boxes=100):
    return sample_boxes(merge_boxes(filter_boxes(propose(image))), max_boxes, image_id)


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.002)


def num_lines(path):
    return path.read_bytes().count(b'\n') if path.exists() else 0


def descendants(pid):
    """Ids of the processes below one, where the system tells."""
    path = Path(f'/proc/{pid}/task/{pid}/children')
    children = path.read_text().split() if path.exists() else []
    return [*children, *(pid for child in children for pid in descendants(child))]


@pytest.fixture
def many_photos(tmp_path, scene):
    """40 photos, enough that a run can be killed half-way, and the file of an undisturbed run."""
    root = tmp_path / 'many'
    root.mkdir()
    for seed in range(40):
        cv2.imwrite(str(root / f'{seed}.png'), scene(seed))
    quiet_run(root, tmp_path / 'undisturbed.npz')
    return root, (tmp_path / 'undisturbed.npz').read_bytes()


def test_each_photo_has_the_boxes_of_a_run_of_its_own(photo_folder, tmp_path):
    summary = quiet_run(photo_folder, tmp_path / 'x.npz', max_boxes=9)
    store = ProposalStore.load(tmp_path / 'x.npz')
    assert len(store) == len(summary.records) == 7
    for photo in list_photos(photo_folder):
        image = cv2.imread(str(photo.path))
        assert store.file_name(photo.image_id) == photo.file_name
        assert store.size(photo.image_id) == image.shape[:2]
        np.testing.assert_array_equal(store.boxes(photo.image_id), expected_boxes(image, photo.image_id, 9))
    assert not (tmp_path / 'x.npz.partial').exists()


def test_same_bytes_with_any_workers_and_order(photo_folder, tmp_path):
    photos = list_photos(photo_folder)
    contents = set()
    for workers, order in ((1, photos), (2, photos[::-1]), (3, photos[3:] + photos[:3])):
        run(order, tmp_path / 'x.npz', workers=workers, progress=False)
        contents.add((tmp_path / 'x.npz').read_bytes())
    moved = shutil.move(photo_folder, tmp_path / 'elsewhere')
    quiet_run(moved, tmp_path / 'x.npz', min_area=144)
    contents.add((tmp_path / 'x.npz').read_bytes())
    assert len(contents) == 1


@needs_sigkill
def test_same_bytes_after_kills(many_photos, tmp_path):
    root, undisturbed = many_photos
    out, partial = tmp_path / 'x.npz', tmp_path / 'x.npz.partial'
    for workers, goal in ((2, 4), (1, 9)):
        child = multiprocessing.get_context('forkserver').Process(
            target=run,
            args=(list_photos(root), out),
            kwargs={'workers': workers, 'progress': False, 'engine': 'opencv'},
        )
        child.start()
        wait_for(lambda goal=goal: num_lines(partial) >= goal)
        offspring = descendants(child.pid)
        child.kill()
        child.join()
        assert not out.exists()
        wait_for(lambda pids=offspring: not any(Path(f'/proc/{pid}').exists() for pid in pids))
    finished = num_lines(partial) - 1
    summary = quiet_run(root, out, workers=2)
    assert summary.resumed == finished
    assert out.read_bytes() == undisturbed
    assert not partial.exists()


@needs_sigkill
def test_same_bytes_after_a_worker_is_killed(many_photos, tmp_path):
    root, undisturbed = many_photos
    out, partial = tmp_path / 'x.npz', tmp_path / 'x.npz.partial'

    def kill_a_worker():
        wait_for(lambda: num_lines(partial) >= 4)
        multiprocessing.active_children()[0].kill()

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    with pytest.raises(InputError, match='a worker process died'):
        quiet_run(root, out, workers=2)
    killer.join()
    assert not out.exists()
    assert quiet_run(root, out).resumed >= 3
    assert out.read_bytes() == undisturbed


@pytest.fixture
def interrupted_run(monkeypatch):
    """``interrupted_run(source, out, count, workers=1)``: Ctrl-C after ``count`` photos; returns their names."""

    def call(source, out, count, workers=1):
        done = []

        def append_or_stop(journal, record):
            if 'file_name' in record:  # not the header
                if len(done) == count:
                    raise KeyboardInterrupt
                done.append(record['file_name'])
            append(journal, record)

        append = Journal.append
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Journal, 'append', append_or_stop)
            quiet_run(source, out, workers=workers)
        return done

    return call


def test_ctrl_c_with_workers_in_work(photo_folder, tmp_path, interrupted_run):
    quiet_run(photo_folder, tmp_path / 'undisturbed.npz')
    interrupted_run(photo_folder, tmp_path / 'x.npz', 2, workers=2)
    assert multiprocessing.active_children() == []
    assert quiet_run(photo_folder, tmp_path / 'x.npz', workers=2).resumed == 2
    assert (tmp_path / 'x.npz').read_bytes() == (tmp_path / 'undisturbed.npz').read_bytes()


def test_resume_refuses_other_rules_and_other_photos(photo_folder, tmp_path, interrupted_run):
    out, partial = tmp_path / 'x.npz', tmp_path / 'x.npz.partial'
    interrupted_run(photo_folder, out, 3)
    content = partial.read_bytes()
    with pytest.raises(InputError, match=r'begun with merge_iou 0\.5 \(now 0\.6\)'):
        quiet_run(photo_folder, out, merge_iou=0.6)
    with pytest.raises(InputError, match='which is not among these photos'):
        quiet_run(photo_folder / 'a', out)
    assert partial.read_bytes() == content


def test_resume_searches_a_changed_photo_again(photo_folder, tmp_path, interrupted_run, scene):
    first = interrupted_run(photo_folder, tmp_path / 'x.npz', 3)[0]
    cv2.imwrite(str(photo_folder / first), scene(99))
    summary = quiet_run(photo_folder, tmp_path / 'x.npz')
    assert summary.resumed == 2
    image_id = image_id_of(first)
    boxes = ProposalStore.load(tmp_path / 'x.npz').boxes(image_id)
    np.testing.assert_array_equal(boxes, expected_boxes(scene(99), image_id))


def test_largest_files_go_first(photo_folder, tmp_path, interrupted_run):
    done = interrupted_run(photo_folder, tmp_path / 'x.npz', 6)
    sizes = [(photo_folder / name).stat().st_size for name in done]
    assert sizes == sorted(sizes, reverse=True)


def test_bad_photos_are_skipped_and_named(photo_folder, tmp_path, scene):
    (photo_folder / 'text.jpg').write_text('not a photo')
    (photo_folder / 'empty.png').touch()
    cv2.imwrite(str(photo_folder / 'cut.jpg'), scene(1))
    (photo_folder / 'cut.jpg').write_bytes((photo_folder / 'cut.jpg').read_bytes()[:-400])
    summary = quiet_run(photo_folder, tmp_path / 'x.npz', workers=2)
    store = ProposalStore.load(tmp_path / 'x.npz')
    reasons = {
        'text.jpg': 'not a whole image of a kind that OpenCV decodes',
        'empty.png': 'the file is empty',
        'cut.jpg': 'truncated or damaged JPEG',
    }
    assert store.skipped == summary.skipped == reasons
    assert len(store) == 7
    assert image_id_of('cut.jpg') not in store
    for name, reason in reasons.items():
        assert f'{name}: {reason}' in str(summary)


def test_photos_without_a_box_are_kept_and_named(tmp_path):
    flat = np.full((72, 96, 3), 90, np.uint8)
    cv2.imwrite(str(tmp_path / 'flat.png'), flat)
    cv2.imwrite(str(tmp_path / 'flat_strip.png'), flat[:30])
    cv2.imwrite(str(tmp_path / 'dot.png'), flat[:1, :1])
    summary = quiet_run(tmp_path, tmp_path / 'x.npz')
    store = ProposalStore.load(tmp_path / 'x.npz')
    assert summary.empty == ['dot.png', 'flat_strip.png']
    assert [len(store.boxes(image_id_of(name))) for name in summary.empty] == [0, 0]
    # Of a flat photo the search finds the whole; a strip of 96 x 30 is outside the paper's aspect ratios.
    assert store.boxes(image_id_of('flat.png')).tolist() == [[0, 0, 96, 72]]


def test_json_that_names_absent_files(photo_folder, tmp_path):
    images = [{'id': 5, 'file_name': 'scene_1.png'}, {'id': 3, 'file_name': 'absent.png'}]
    (tmp_path / 'x.json').write_text(json.dumps({'images': images}))
    photos = list_photos(tmp_path / 'x.json', photo_folder)
    summary = run(photos, tmp_path / 'x.npz', workers=1, progress=False)
    assert summary.skipped == {'absent.png': 'the file does not exist'}
    store = ProposalStore.load(tmp_path / 'x.npz')
    assert store.image_ids.tolist() == [5]
    image = cv2.imread(str(photo_folder / 'scene_1.png'))
    np.testing.assert_array_equal(store.boxes(5), expected_boxes(image, 5))


def test_rotated_photo_has_boxes_in_rotated_pixels(tmp_path, scene):
    upright = scene(8)
    exif = Image.Exif()
    exif[0x0112] = 8  # to be shown turned by 90 degrees anticlockwise
    stored = np.rot90(upright, -1)
    Image.fromarray(stored[..., ::-1].copy()).save(tmp_path / 'x.png', exif=exif)
    quiet_run(tmp_path, tmp_path / 'x.npz')
    store = ProposalStore.load(tmp_path / 'x.npz')
    (image_id,) = store.image_ids.tolist()
    assert store.size(image_id) == (72, 96)
    np.testing.assert_array_equal(store.boxes(image_id), expected_boxes(upright, image_id))


@pytest.mark.parametrize(
    ('rule', 'value'),
    [('mode', 'slow'), ('min_area', -1), ('max_aspect', 1), ('merge_iou', 0), ('merge_iou', 1.5), ('max_boxes', 0)],
)
def test_rules_out_of_range_leave_nothing(photo_folder, tmp_path, rule, value):
    with pytest.raises(InputError, match=str(value)):
        quiet_run(photo_folder, tmp_path / 'x.npz', **{rule: value})
    assert [path.name for path in tmp_path.iterdir()] == ['photos']


def test_out_that_is_a_folder(photo_folder):
    with pytest.raises(InputError, match='is a folder: name the file'):
        quiet_run(photo_folder, photo_folder)


def test_real_photos(coco_cc31, tmp_path):
    """Three photos at a quarter of their size: whole boxes inside the photo, none too small, long or overlapping."""
    for path in sorted((coco_cc31 / 'images').iterdir())[:3]:
        image = cv2.imread(str(path))
        cv2.imwrite(str(tmp_path / path.name), cv2.resize(image, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA))
    summary = quiet_run(tmp_path, tmp_path / 'x.npz', max_boxes=10_000)
    store = ProposalStore.load(tmp_path / 'x.npz')
    for image_id in store.image_ids.tolist():
        boxes, (height, width) = store.boxes(image_id), store.size(image_id)
        image = cv2.imread(str(tmp_path / store.file_name(image_id)))
        np.testing.assert_array_equal(boxes, expected_boxes(image, image_id, 10_000))
        assert (boxes == np.round(boxes)).all()
        assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
        sides = boxes[:, 2:] - boxes[:, :2]
        assert sides.prod(axis=1).min() >= 144
        assert (sides.max(axis=1) < 3 * sides.min(axis=1)).all()
        overlaps = pairwise_iou(torch.from_numpy(boxes), torch.from_numpy(boxes)).fill_diagonal_(0)
        assert overlaps.max() <= 0.5
    raw, ruled, merged = np.mean([record.counts for record in summary.records], axis=0)
    assert raw > ruled > merged == np.mean([len(store.boxes(image_id)) for image_id in store.image_ids])
