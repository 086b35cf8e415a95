"""Generation of proposals files: identical bytes for any interruption, order and number of workers."""

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

from ccop_mm.datasets import LoadUnlabeledImage
from ccop_mm.proposals import ProposalStore, generate_proposals, image_id_from_path, list_images, propose
from ccop_mm.proposals.candidates import random_boxes
from ccop_mm.proposals.runner import local, run
from ccop_mm.proposals.runner.journal import Journal
from ccop_mm.proposals.selection import filter_boxes, merge_boxes, sample_boxes
from ccop_mm.utils.boxes import pairwise_iou
from ccop_mm.utils.errors import InputError

needs_sigkill = pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')


def generate(source, out, **options):
    """Generates proposals with the slower engine by default, which leaves time to kill the run."""
    slow = {} if 'method' in options else {'engine': 'opencv'}
    return generate_proposals(list_images(source), out, progress=False, **{'workers': 1, **slow, **options})


def opencv_boxes(image, mode='Fast'):
    """Calls OpenCV directly and returns its distinct boxes in ascending order."""
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image)
    getattr(search, f'switchToSelectiveSearch{mode}')()
    return np.array(sorted({(x, y, x + w, y + h) for x, y, w, h in search.process().tolist()}), np.float32)


def expected_boxes(image, image_id, max_boxes=100, seed=0):
    return sample_boxes(merge_boxes(filter_boxes(opencv_boxes(image))), max_boxes, image_id, seed)


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'timed out'
        time.sleep(0.002)


def num_lines(path):
    return path.read_bytes().count(b'\n') if path.exists() else 0


def descendants(pid):
    """Returns the ids of all processes below one; empty on systems without /proc."""
    path = Path(f'/proc/{pid}/task/{pid}/children')
    children = path.read_text().split() if path.exists() else []
    return [*children, *(pid for child in children for pid in descendants(child))]


def alive(pid):
    """Returns whether a process runs; a zombie does not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.fixture
def many_images(tmp_path, scene):
    """A folder of 80 images, enough to kill a run before it ends, and the bytes of an uninterrupted run."""
    root = tmp_path / 'many'
    root.mkdir()
    for seed in range(80):
        cv2.imwrite(str(root / f'{seed}.png'), scene(seed))
    generate(root, tmp_path / 'uninterrupted.npz')
    return root, (tmp_path / 'uninterrupted.npz').read_bytes()


def test_boxes_equal_those_of_each_image_alone(image_folder, tmp_path):
    summary = generate(image_folder, tmp_path / 'x.npz', max_boxes=9)
    store = ProposalStore.load(tmp_path / 'x.npz')
    assert len(store) == len(summary.records) == 7
    for image_file in list_images(image_folder):
        image = cv2.imread(str(image_file.path))
        assert store.file_name(image_file.image_id) == image_file.file_name
        assert store.size(image_file.image_id) == image.shape[:2]
        np.testing.assert_array_equal(store.boxes(image_file.image_id), expected_boxes(image, image_file.image_id, 9))
    assert not (tmp_path / 'x.npz.partial').exists()


@pytest.mark.slow
def test_file_is_identical_for_any_workers_and_order(image_folder, tmp_path):
    images = list_images(image_folder)
    contents = set()
    for workers, order in ((1, images), (2, images[::-1]), (5, images[3:] + images[:3])):
        generate_proposals(order, tmp_path / 'x.npz', workers=workers, progress=False)
        contents.add((tmp_path / 'x.npz').read_bytes())
    moved = shutil.move(image_folder, tmp_path / 'elsewhere')
    generate(moved, tmp_path / 'x.npz', min_area=144, engine='native')
    contents.add((tmp_path / 'x.npz').read_bytes())
    assert len(contents) == 1


@pytest.mark.slow
@needs_sigkill
def test_file_is_identical_after_ten_kills_at_random_times(many_images, tmp_path):
    """Files are copied in random order; every run has a random list order and number of workers and is killed."""
    root, uninterrupted = many_images
    out, partial, rng = tmp_path / 'x.npz', tmp_path / 'x.npz.partial', np.random.default_rng(0)
    shuffled = tmp_path / 'shuffled'
    shuffled.mkdir()
    for path in rng.permutation(sorted(root.iterdir())):
        shutil.copy(path, shuffled)
    local._context()  # preloads the imports of the children if no forkserver was started before
    before = 0
    for workers in rng.permutation([1, 1, 1, 1, 1, 1, 1, 2, 2, 5]).tolist():
        images = rng.permutation(np.array(list_images(shuffled), dtype=object)).tolist()
        child = multiprocessing.get_context('forkserver').Process(
            target=generate_proposals,
            args=(images, out),
            kwargs={'workers': workers, 'progress': False, 'engine': 'opencv'},
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
        assert num_lines(partial) >= before, 'a finished image was lost'
        before = num_lines(partial)
    summary = generate(shuffled, out, workers=2)
    assert summary.resumed == max(0, before - 1)  # without the header
    assert out.read_bytes() == uninterrupted
    assert not partial.exists()
    store = ProposalStore.load(out)
    for image_file in list_images(root):
        image = cv2.imread(str(image_file.path))
        np.testing.assert_array_equal(store.boxes(image_file.image_id), expected_boxes(image, image_file.image_id))


@pytest.mark.slow
@needs_sigkill
def test_file_is_identical_after_a_worker_is_killed(many_images, tmp_path):
    root, uninterrupted = many_images
    out, partial = tmp_path / 'x.npz', tmp_path / 'x.npz.partial'

    def kill_a_worker():
        wait_for(lambda: num_lines(partial) >= 4)
        multiprocessing.active_children()[0].kill()

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    with pytest.raises(InputError, match='worker process'):
        generate(root, out, workers=2)
    killer.join()
    assert not out.exists()
    assert generate(root, out).resumed >= 3
    assert out.read_bytes() == uninterrupted


@pytest.fixture
def interrupted_run(monkeypatch):
    """``interrupted_run(source, out, count, workers=1)``: Ctrl-C after ``count`` images; returns their file names."""

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
            generate(source, out, workers=workers)
        return done

    return call


def test_ctrl_c_stops_the_workers(image_folder, tmp_path, interrupted_run):
    generate(image_folder, tmp_path / 'uninterrupted.npz')
    interrupted_run(image_folder, tmp_path / 'x.npz', 2, workers=2)
    assert multiprocessing.active_children() == []
    assert generate(image_folder, tmp_path / 'x.npz', workers=2).resumed == 2
    assert (tmp_path / 'x.npz').read_bytes() == (tmp_path / 'uninterrupted.npz').read_bytes()


def test_resume_rejects_other_settings_and_other_images(image_folder, tmp_path, interrupted_run):
    out, partial = tmp_path / 'x.npz', tmp_path / 'x.npz.partial'
    interrupted_run(image_folder, out, 3)
    content = partial.read_bytes()
    with pytest.raises(InputError, match=r'x\.npz\.partial .*merge_iou 0\.5 \(now 0\.6\)'):
        generate(image_folder, out, merge_iou=0.6)
    with pytest.raises(InputError, match=r'x\.npz\.partial .*scene_\d\.png'):
        generate(image_folder / 'a', out)
    assert partial.read_bytes() == content


def test_resume_processes_a_changed_image_again(image_folder, tmp_path, interrupted_run, scene):
    first = interrupted_run(image_folder, tmp_path / 'x.npz', 3)[0]
    cv2.imwrite(str(image_folder / first), scene(99))
    summary = generate(image_folder, tmp_path / 'x.npz')
    assert summary.resumed == 2
    image_id = image_id_from_path(first)
    boxes = ProposalStore.load(tmp_path / 'x.npz').boxes(image_id)
    np.testing.assert_array_equal(boxes, expected_boxes(scene(99), image_id))


def test_largest_files_are_processed_first(image_folder, tmp_path, interrupted_run):
    done = interrupted_run(image_folder, tmp_path / 'x.npz', 6)
    sizes = [(image_folder / name).stat().st_size for name in done]
    assert sizes == sorted(sizes, reverse=True)


def test_unreadable_images_are_skipped_and_reported(image_folder, tmp_path, scene):
    (image_folder / 'text.jpg').write_text('not an image')
    (image_folder / 'empty.png').touch()
    cv2.imwrite(str(image_folder / 'cut.jpg'), scene(1))
    (image_folder / 'cut.jpg').write_bytes((image_folder / 'cut.jpg').read_bytes()[:-400])
    summary = generate(image_folder, tmp_path / 'x.npz', workers=2)
    store = ProposalStore.load(tmp_path / 'x.npz')
    reasons = {
        'text.jpg': 'not a whole image of a kind that OpenCV decodes',
        'empty.png': 'the file is empty',
        'cut.jpg': 'truncated or damaged JPEG',
    }
    assert store.skipped == summary.skipped == reasons
    assert len(store) == 7
    assert image_id_from_path('cut.jpg') not in store
    for name, reason in reasons.items():
        assert f'{name}: {reason}' in str(summary)


def test_images_without_boxes_are_kept_and_reported(tmp_path):
    flat = np.full((72, 96, 3), 90, np.uint8)
    cv2.imwrite(str(tmp_path / 'flat.png'), flat)
    cv2.imwrite(str(tmp_path / 'flat_strip.png'), flat[:30])
    cv2.imwrite(str(tmp_path / 'dot.png'), flat[:1, :1])
    summary = generate(tmp_path, tmp_path / 'x.npz')
    store = ProposalStore.load(tmp_path / 'x.npz')
    assert summary.empty == ['dot.png', 'flat_strip.png']
    assert [len(store.boxes(image_id_from_path(name))) for name in summary.empty] == [0, 0]
    # The search finds the whole of a constant image; a strip of 96 x 30 is outside the aspect ratio limits.
    assert store.boxes(image_id_from_path('flat.png')).tolist() == [[0, 0, 96, 72]]


def test_missing_files_of_a_json_are_skipped(image_folder, tmp_path):
    images = [{'id': 5, 'file_name': 'scene_1.png'}, {'id': 3, 'file_name': 'absent.png'}]
    (tmp_path / 'x.json').write_text(json.dumps({'images': images}))
    images = list_images(tmp_path / 'x.json', image_folder)
    summary = generate_proposals(images, tmp_path / 'x.npz', workers=1, progress=False)
    assert summary.skipped == {'absent.png': 'the file does not exist'}
    store = ProposalStore.load(tmp_path / 'x.npz')
    assert store.image_ids.tolist() == [5]
    image = cv2.imread(str(image_folder / 'scene_1.png'))
    np.testing.assert_array_equal(store.boxes(5), expected_boxes(image, 5))


def write_image_formats(folder, upright):
    """Writes one readable image of every common format and pixel type."""
    rgb = np.ascontiguousarray(upright[..., ::-1])
    image = Image.fromarray(rgb)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(folder / f'exif_{orientation}.jpg', exif=exif)
    image.convert('CMYK').save(folder / 'cmyk.jpg')
    image.convert('L').save(folder / 'gray.jpg')
    image.convert('L').save(folder / 'gray.png')
    image.convert('P').save(folder / 'palette.png')
    image.convert('RGBA').save(folder / 'rgba.png')
    image.convert('LA').save(folder / 'gray_alpha.png')
    image.convert('1').save(folder / 'bilevel.png')
    cv2.imwrite(str(folder / 'rgb_16.png'), upright.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / 'gray_16.png'), upright[..., 0].astype(np.uint16) * 257)
    cv2.imwrite(str(folder / 'rgb_16.tiff'), upright.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / 'dot.png'), upright[:1, :1])
    cv2.imwrite(str(folder / 'large.jpg'), cv2.resize(upright, (12000, 4000)))
    cv2.imwrite(str(folder / 'long.png'), cv2.resize(upright, (3, 12000)))


@pytest.mark.slow
def test_image_formats_are_decoded_as_in_training(tmp_path, scene):
    write_image_formats(tmp_path, scene(8))
    summary = generate(tmp_path, tmp_path / 'x.npz')
    store = ProposalStore.load(tmp_path / 'x.npz')
    assert (len(store), summary.skipped) == (21, {})
    for image_file in list_images(tmp_path):
        loaded = LoadUnlabeledImage().transform({'img_path': str(image_file.path)})['img']
        assert store.size(image_file.image_id) == loaded.shape[:2]
        if max(loaded.shape) < 1024:
            np.testing.assert_array_equal(store.boxes(image_file.image_id), expected_boxes(loaded, image_file.image_id))
    sizes = {
        name: store.size(image_id_from_path(name)) for name in ('exif_1.jpg', 'exif_6.jpg', 'exif_8.jpg', 'large.jpg')
    }
    assert sizes == {'exif_1.jpg': (72, 96), 'exif_6.jpg': (96, 72), 'exif_8.jpg': (96, 72), 'large.jpg': (4000, 12000)}
    # Lossless formats have the boxes of the original pixels.
    for name in ('rgba.png', 'rgb_16.png', 'rgb_16.tiff'):
        np.testing.assert_array_equal(
            store.boxes(image_id_from_path(name)), expected_boxes(scene(8), image_id_from_path(name))
        )
    assert len(store.boxes(image_id_from_path('large.jpg'))) > 20
    assert len(store.boxes(image_id_from_path('dot.png'))) == len(store.boxes(image_id_from_path('long.png'))) == 0


def test_skipped_images_are_stored_with_the_reason(tmp_path, scene):
    folder = tmp_path / 'images'
    folder.mkdir()
    cv2.imwrite(str(folder / 'good.png'), scene(1))
    (folder / 'empty.jpg').touch()
    (folder / 'text.png').write_text('not an image')
    (folder / 'gone.jpg').symlink_to(folder / 'missing.jpg')
    os.symlink('loop.jpg', folder / 'loop.jpg')
    for suffix in ('jpg', 'png', 'bmp', 'tiff', 'webp'):
        content = cv2.imencode(f'.{suffix}', scene(2))[1].tobytes()
        (folder / f'cut.{suffix}').write_bytes(content[: len(content) // 2])
    (folder / 'denied.jpg').write_bytes(content)
    (folder / 'denied.jpg').chmod(0)
    readable = os.access(folder / 'denied.jpg', os.R_OK)  # true for the superuser
    summary = generate(folder, tmp_path / 'x.npz')
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


def test_image_that_kills_dask_workers_is_skipped_and_named(image_folder, tmp_path, monkeypatch):
    def kill_on_first(function, items, address, on_killed):
        yield on_killed(items[0])
        yield from map(function, items[1:])

    monkeypatch.setattr(run, 'map_on_dask', kill_on_first)
    summary = generate(image_folder, tmp_path / 'x.npz', scheduler='tcp://nowhere:1')
    store = ProposalStore.load(tmp_path / 'x.npz')
    ((name, reason),) = store.skipped.items()
    assert len(store) == 6 and 'workers died' in reason
    assert f'    {name}: {reason}' in str(summary).splitlines()


def test_16_bit_images_of_12_bits_and_other_files_are_named(tmp_path, scene):
    folder = tmp_path / 'images'
    folder.mkdir()
    cv2.imwrite(str(folder / 'twelve.png'), scene(8).astype(np.uint16) << 4)
    cv2.imwrite(str(folder / 'sixteen.png'), scene(8).astype(np.uint16) << 8)
    (folder / 'x.gif').touch()
    summary = generate(folder, tmp_path / 'x.npz', method='random')
    assert (summary.low_depth, summary.passed_over) == ({'twelve.png': 12}, {'.gif': 1})
    assert len(ProposalStore.load(tmp_path / 'x.npz')) == 2


def test_seed_and_limits_reach_the_boxes(image_folder, tmp_path):
    generate(image_folder, tmp_path / 'x.npz', seed=7, max_boxes=5)
    generate(image_folder, tmp_path / 'small.npz', max_side=40)
    store, small = ProposalStore.load(tmp_path / 'x.npz'), ProposalStore.load(tmp_path / 'small.npz')
    for image_file in list_images(image_folder):
        image = cv2.imread(str(image_file.path))
        np.testing.assert_array_equal(
            store.boxes(image_file.image_id), expected_boxes(image, image_file.image_id, 5, 7)
        )
        assert store.boxes(image_file.image_id).tolist() != expected_boxes(image, image_file.image_id, 5).tolist()
        found = merge_boxes(filter_boxes(propose(image, max_side=40)))
        np.testing.assert_array_equal(small.boxes(image_file.image_id), sample_boxes(found, 100, image_file.image_id))
        assert small.size(image_file.image_id) == image.shape[:2]


def test_random_boxes_and_merge_rule_reach_the_boxes(image_folder, tmp_path):
    generate(image_folder, tmp_path / 'x.npz', method='random', merge='smallest', max_boxes=20)
    store = ProposalStore.load(tmp_path / 'x.npz')
    for image_file in list_images(image_folder):
        found = random_boxes(store.size(image_file.image_id), image_file.image_id)
        merged = merge_boxes(filter_boxes(found), 0.5, 'smallest')
        np.testing.assert_array_equal(store.boxes(image_file.image_id), sample_boxes(merged, 20, image_file.image_id))
    assert store.metadata['method'] == 'random'


def test_ground_truth_of_a_folder(image_folder, tmp_path):
    images = [{'id': 5, 'file_name': 'scene_1.png'}, {'id': 3, 'file_name': 'a/scene_5.png', 'width': 1, 'height': 1}]
    boxes = [[1, 2, 3, 60.5], [1, 2, 30, 5]]  # outside the default limits of aspect ratio and area
    content = {'images': images, 'annotations': [{'image_id': 5, 'bbox': box} for box in boxes]}
    (tmp_path / 'x.json').write_text(json.dumps(content))
    summary = generate(image_folder, tmp_path / 'x.npz', method='ground-truth', annotations=tmp_path / 'x.json')
    store = ProposalStore.load(tmp_path / 'x.npz')
    found = store.boxes(image_id_from_path('scene_1.png')).tolist()
    assert sorted(found) == [[1, 2, 4, 62.5], [1, 2, 31, 7]]
    assert store.metadata['method'] == 'ground-truth' and len(store.metadata['annotations']) == 32
    assert len(summary.skipped) == 6
    assert summary.skipped['scene_0.png'] == 'the annotations do not list it'
    assert '1x1 in the annotations' in summary.skipped['a/scene_5.png']
    for options in ({'method': 'ground-truth'}, {'annotations': tmp_path / 'x.json'}):
        with pytest.raises(InputError, match='ground-truth'):
            generate(image_folder, tmp_path / 'y.npz', **options)


@pytest.mark.slow
def test_second_run_of_the_same_file_is_rejected(image_folder, tmp_path):
    out = tmp_path / 'x.npz'
    code = (
        'import sys, time\n'
        'from ccop_mm.proposals.runner.journal import Journal\n'
        'journal = Journal(sys.argv[1], {}, dict)\n'
        'print(1, flush=True)\n'
        'time.sleep(60)\n'
    )
    other = subprocess.Popen([sys.executable, '-c', code, f'{out}.partial'], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(InputError, match=r'x\.npz\.partial'):
            generate(image_folder, out)
    finally:
        other.kill()
        other.communicate()


@pytest.mark.parametrize(
    ('name', 'value'),
    [('mode', 'slow'), ('min_area', -1), ('max_aspect', 1), ('merge_iou', 0), ('merge_iou', 1.5), ('max_boxes', 0)],
)
def test_settings_out_of_range_leave_no_files(image_folder, tmp_path, name, value):
    with pytest.raises(InputError, match=f'^{name} .*{value}'):
        generate(image_folder, tmp_path / 'x.npz', **{name: value})
    assert [path.name for path in tmp_path.iterdir()] == ['images']


def test_folder_as_output_is_rejected(image_folder):
    with pytest.raises(InputError, match=str(image_folder)):
        generate(image_folder, image_folder)


def test_real_images(coco_cc31, tmp_path):
    """Boxes of three images at a quarter of their size are inside the image and within all limits."""
    for path in sorted((coco_cc31 / 'images').iterdir())[:3]:
        image = cv2.imread(str(path))
        cv2.imwrite(str(tmp_path / path.name), cv2.resize(image, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA))
    summary = generate(tmp_path, tmp_path / 'x.npz', max_boxes=10_000)
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
    candidates, filtered, merged = np.mean([record.counts for record in summary.records], axis=0)
    assert candidates > filtered > merged == np.mean([len(store.boxes(image_id)) for image_id in store.image_ids])
