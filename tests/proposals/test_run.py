"""Photos to a file: the same bytes whatever happens on the way."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ccop_mm.boxes import pairwise_iou
from ccop_mm.datasets import LoadPhoto
from ccop_mm.errors import InputError
from ccop_mm.proposals import ProposalStore, image_id_of, list_photos, pool
from ccop_mm.proposals.journal import Journal
from ccop_mm.proposals.methods import random_boxes, search_boxes
from ccop_mm.proposals.run import run
from ccop_mm.proposals.select import filter_boxes, merge_boxes, sample_boxes

needs_sigkill = pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')


def quiet_run(source, out, **options):
    """By the slower engine where there is one, which leaves time to kill it."""
    slow = {} if 'method' in options else {'engine': 'opencv'}
    return run(list_photos(source), out, progress=False, **{'workers': 1, **slow, **options})


def opencv_boxes(image, mode='Fast'):
    """OpenCV's own result for one photo, without this package: its distinct boxes, ascending."""
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    getattr(search, f'switchToSelectiveSearch{mode}')()
    return np.array(sorted({(x, y, x + w, y + h) for x, y, w, h in search.process().tolist()}), np.float32)


def expected_boxes(image, image_id, max_boxes=100, seed=0):
    return sample_boxes(merge_boxes(filter_boxes(opencv_boxes(image))), max_boxes, image_id, seed)


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


def alive(pid):
    """Whether a process still runs; one that has ended may stay listed until its parent looks."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.fixture
def many_photos(tmp_path, scene):
    """80 photos, enough that a run can be killed half-way, and the file of an undisturbed run."""
    root = tmp_path / 'many'
    root.mkdir()
    for seed in range(80):
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
    for workers, order in ((1, photos), (2, photos[::-1]), (5, photos[3:] + photos[:3])):
        run(order, tmp_path / 'x.npz', workers=workers, progress=False)
        contents.add((tmp_path / 'x.npz').read_bytes())
    moved = shutil.move(photo_folder, tmp_path / 'elsewhere')
    quiet_run(moved, tmp_path / 'x.npz', min_area=144, engine='native')
    contents.add((tmp_path / 'x.npz').read_bytes())
    assert len(contents) == 1


@needs_sigkill
def test_same_bytes_after_ten_kills_at_random_moments(many_photos, tmp_path):
    """Files written anew in another order, another list order and number of workers each time, SIGKILL, and so on."""
    root, undisturbed = many_photos
    out, partial, rng = tmp_path / 'x.npz', tmp_path / 'x.npz.partial', np.random.default_rng()
    shuffled = tmp_path / 'shuffled'
    shuffled.mkdir()
    for path in rng.permutation(sorted(root.iterdir())):
        shutil.copy(path, shuffled)
    pool._context()  # the children begin with the imports done, if none was begun before
    before = 0
    for workers in rng.permutation([1, 1, 1, 1, 1, 1, 1, 2, 2, 5]).tolist():
        photos = rng.permutation(np.array(list_photos(shuffled), dtype=object)).tolist()
        child = multiprocessing.get_context('forkserver').Process(
            target=run, args=(photos, out), kwargs={'workers': workers, 'progress': False, 'engine': 'opencv'}
        )
        child.start()
        goal = before + int(rng.integers(0, 4))
        wait_for(lambda goal=goal: num_lines(partial) >= goal, 120)
        time.sleep(rng.uniform(0, 0.03))
        offspring = descendants(child.pid)
        child.kill()
        child.join()
        assert not out.exists(), 'finished before it could be killed'
        wait_for(lambda pids=offspring: not any(map(alive, pids)), 120)
        assert num_lines(partial) >= before, 'a finished photo was lost'
        before = num_lines(partial)
    summary = quiet_run(shuffled, out, workers=2)
    assert summary.resumed == max(0, before - 1)  # without the header
    assert out.read_bytes() == undisturbed
    assert not partial.exists()
    store = ProposalStore.load(out)
    for photo in list_photos(root):
        image = cv2.imread(str(photo.path))
        np.testing.assert_array_equal(store.boxes(photo.image_id), expected_boxes(image, photo.image_id))


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


def write_kinds_of_photos(folder, upright):
    """One photo of every kind that people have, all of them sound."""
    rgb = np.ascontiguousarray(upright[..., ::-1])
    photo = Image.fromarray(rgb)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo.save(folder / f'exif_{orientation}.jpg', exif=exif)
    photo.convert('CMYK').save(folder / 'cmyk.jpg')
    photo.convert('L').save(folder / 'grey.jpg')
    photo.convert('L').save(folder / 'grey.png')
    photo.convert('P').save(folder / 'palette.png')
    photo.convert('RGBA').save(folder / 'rgba.png')
    photo.convert('LA').save(folder / 'grey_alpha.png')
    photo.convert('1').save(folder / 'bilevel.png')
    cv2.imwrite(str(folder / 'rgb_16.png'), upright.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / 'grey_16.png'), upright[..., 0].astype(np.uint16) * 257)
    cv2.imwrite(str(folder / 'rgb_16.tiff'), upright.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / 'dot.png'), upright[:1, :1])
    cv2.imwrite(str(folder / 'large.jpg'), cv2.resize(upright, (12000, 4000)))
    cv2.imwrite(str(folder / 'long.png'), cv2.resize(upright, (3, 12000)))


def test_every_kind_of_photo_is_searched_as_the_training_loads_it(tmp_path, scene):
    write_kinds_of_photos(tmp_path, scene(8))
    summary = quiet_run(tmp_path, tmp_path / 'x.npz')
    store = ProposalStore.load(tmp_path / 'x.npz')
    assert (len(store), summary.skipped) == (21, {})
    for photo in list_photos(tmp_path):
        loaded = LoadPhoto().transform({'img_path': str(photo.path)})['img']
        assert store.size(photo.image_id) == loaded.shape[:2]
        if max(loaded.shape) < 1024:
            np.testing.assert_array_equal(store.boxes(photo.image_id), expected_boxes(loaded, photo.image_id))
    sizes = {name: store.size(image_id_of(name)) for name in ('exif_1.jpg', 'exif_6.jpg', 'exif_8.jpg', 'large.jpg')}
    assert sizes == {'exif_1.jpg': (72, 96), 'exif_6.jpg': (96, 72), 'exif_8.jpg': (96, 72), 'large.jpg': (4000, 12000)}
    # Lossless ones of the same pixels have the boxes of the photo itself, whatever their format.
    for name in ('rgba.png', 'rgb_16.png', 'rgb_16.tiff'):
        np.testing.assert_array_equal(store.boxes(image_id_of(name)), expected_boxes(scene(8), image_id_of(name)))
    assert len(store.boxes(image_id_of('large.jpg'))) > 20
    assert len(store.boxes(image_id_of('dot.png'))) == len(store.boxes(image_id_of('long.png'))) == 0


def test_photos_that_cannot_be_used_are_named_with_the_reason(tmp_path, scene):
    folder = tmp_path / 'photos'
    folder.mkdir()
    cv2.imwrite(str(folder / 'good.png'), scene(1))
    (folder / 'empty.jpg').touch()
    (folder / 'text.png').write_text('not a photo')
    (folder / 'gone.jpg').symlink_to(folder / 'nowhere.jpg')
    os.symlink('loop.jpg', folder / 'loop.jpg')
    for suffix in ('jpg', 'png', 'bmp', 'tiff', 'webp'):
        content = cv2.imencode(f'.{suffix}', scene(2))[1].tobytes()
        (folder / f'cut.{suffix}').write_bytes(content[: len(content) // 2])
    (folder / 'denied.jpg').write_bytes(content)
    (folder / 'denied.jpg').chmod(0)
    readable = os.access(folder / 'denied.jpg', os.R_OK)  # by the superuser
    summary = quiet_run(folder, tmp_path / 'x.npz')
    store = ProposalStore.load(tmp_path / 'x.npz')
    expected = {
        'empty.jpg': 'the file is empty',
        'text.png': 'not a whole image of a kind that OpenCV decodes',
        'gone.jpg': 'the file does not exist',
        'loop.jpg': 'cannot be read: Too many levels of symbolic links',
        'cut.jpg': 'truncated or damaged JPEG',
        'cut.png': 'truncated or damaged PNG',
        'cut.bmp': 'truncated or damaged BMP',
        'cut.tiff': 'not a whole image of a kind that OpenCV decodes',
        'cut.webp': 'not a whole image of a kind that OpenCV decodes',
        **({} if readable else {'denied.jpg': 'cannot be read: Permission denied'}),
    }
    assert store.skipped == summary.skipped
    assert {name: store.skipped[name] for name in expected} == expected
    assert len(store) == 1 + readable


def test_seed_and_limits_reach_the_boxes(photo_folder, tmp_path):
    quiet_run(photo_folder, tmp_path / 'x.npz', seed=7, max_boxes=5)
    quiet_run(photo_folder, tmp_path / 'small.npz', max_side=40)
    store, small = ProposalStore.load(tmp_path / 'x.npz'), ProposalStore.load(tmp_path / 'small.npz')
    for photo in list_photos(photo_folder):
        image = cv2.imread(str(photo.path))
        np.testing.assert_array_equal(store.boxes(photo.image_id), expected_boxes(image, photo.image_id, 5, 7))
        assert store.boxes(photo.image_id).tolist() != expected_boxes(image, photo.image_id, 5).tolist()
        found = merge_boxes(filter_boxes(search_boxes(image, 'fast', 40)))
        np.testing.assert_array_equal(small.boxes(photo.image_id), sample_boxes(found, 100, photo.image_id))
        assert small.size(photo.image_id) == image.shape[:2]


def test_random_boxes_and_merge_rules(photo_folder, tmp_path):
    quiet_run(photo_folder, tmp_path / 'x.npz', method='random', merge='smallest', max_boxes=20)
    store = ProposalStore.load(tmp_path / 'x.npz')
    for photo in list_photos(photo_folder):
        found = random_boxes(store.size(photo.image_id), photo.image_id)
        merged = merge_boxes(filter_boxes(found), 0.5, 'smallest')
        np.testing.assert_array_equal(store.boxes(photo.image_id), sample_boxes(merged, 20, photo.image_id))
    assert store.metadata['method'] == 'random'


def test_ground_truth_of_a_folder_s_photos(photo_folder, tmp_path):
    images = [{'id': 5, 'file_name': 'scene_1.png'}, {'id': 3, 'file_name': 'a/scene_5.png', 'width': 1, 'height': 1}]
    boxes = [[1, 2, 3, 60.5], [1, 2, 30, 5]]  # too long and too small for the rules of a search
    content = {'images': images, 'annotations': [{'image_id': 5, 'bbox': box} for box in boxes]}
    (tmp_path / 'x.json').write_text(json.dumps(content))
    summary = quiet_run(photo_folder, tmp_path / 'x.npz', method='ground-truth', annotations=tmp_path / 'x.json')
    store = ProposalStore.load(tmp_path / 'x.npz')
    found = store.boxes(image_id_of('scene_1.png')).tolist()
    assert sorted(found) == [[1, 2, 4, 62.5], [1, 2, 31, 7]]
    assert store.metadata['method'] == 'ground-truth' and len(store.metadata['annotations']) == 32
    assert len(summary.skipped) == 6
    assert summary.skipped['scene_0.png'] == 'the annotations do not list it'
    assert '1x1 in the annotations' in summary.skipped['a/scene_5.png']
    for options in ({'method': 'ground-truth'}, {'annotations': tmp_path / 'x.json'}):
        with pytest.raises(InputError, match='go with the method ground-truth'):
            quiet_run(photo_folder, tmp_path / 'y.npz', **options)


def test_two_runs_of_one_file_do_not_mix(photo_folder, tmp_path):
    out = tmp_path / 'x.npz'
    code = (
        'import sys, time\n'
        'from ccop_mm.proposals.journal import Journal\n'
        'journal = Journal(sys.argv[1], {}, dict)\n'
        'print(1, flush=True)\n'
        'time.sleep(60)\n'
    )
    other = subprocess.Popen([sys.executable, '-c', code, f'{out}.partial'], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(InputError, match='is in use: the same command is running already'):
            quiet_run(photo_folder, out)
    finally:
        other.kill()
        other.communicate()


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
