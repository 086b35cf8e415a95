"""Conversion of proposals to and from COCO json."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from ccop_mm.proposals import ProposalStore, export_coco, import_coco, load_proposals
from ccop_mm.proposals.coco_format import DROPPED_KEY
from ccop_mm.utils.errors import InputError

METADATA = {'method': 'random', 'seed': 3}
SKIPPED = {'b/ö.jpg': 'truncated or damaged JPEG', 'caf\udce9.png': 'the file is empty'}


@pytest.fixture(params=[np.uint16, np.float32])
def store(request):
    rng = np.random.default_rng(0)
    entries = []
    for image_id, name, count in (
        (7, 'x.jpg', 30),
        (139, 'ü/caf\udce9.jpg', 0),  # codespell:ignore caf
        (2**40, 'z.jpg', 100),
    ):
        top_left = rng.uniform(0, 200, (count, 2))
        boxes = np.concatenate([top_left, top_left + rng.uniform(1, 300, (count, 2))], axis=1)
        entries.append((image_id, name, (500, 600 + image_id % 9), boxes.astype(request.param)))
    return ProposalStore(entries, SKIPPED, METADATA, {7: 2**64 - 1})


def assert_rejected(match, function, *args, **kwargs):
    with pytest.raises(InputError, match=match) as caught:
        function(*args, **kwargs)
    assert '\n' not in str(caught.value)


def test_round_trip_preserves_the_bytes(store, tmp_path):
    store.save(tmp_path / 'a.npz')
    export_coco(ProposalStore.load(tmp_path / 'a.npz'), tmp_path / 'x.json')
    import_coco(tmp_path / 'x.json').save(tmp_path / 'b.npz')
    assert (tmp_path / 'a.npz').read_bytes() == (tmp_path / 'b.npz').read_bytes()


def test_export_is_read_by_pycocotools(store, tmp_path):
    export_coco(store, tmp_path / 'x.json')
    coco = COCO(str(tmp_path / 'x.json'))
    assert sorted(coco.getImgIds()) == store.image_ids.tolist()
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == ['object']
    for image_id, name, (height, width), boxes in store.entries():
        (image,) = coco.loadImgs(image_id)
        assert (image['file_name'], image['height'], image['width']) == (name, height, width)
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        for annotation, (x1, y1, x2, y2) in zip(annotations, boxes.astype(float).tolist(), strict=True):
            assert annotation['bbox'] == [x1, y1, x2 - x1, y2 - y1]
            assert annotation['area'] == pytest.approx((x2 - x1) * (y2 - y1))
    assert len(coco.loadRes([{**a, 'score': 1.0} for a in coco.dataset['annotations']]).anns) == 130


def test_empty_store_is_exported(tmp_path):
    export_coco(ProposalStore([]), tmp_path / 'x.json')
    assert json.loads((tmp_path / 'x.json').read_text())['annotations'] == []


@pytest.fixture
def coco_folder(tmp_path):
    """Annotations, and detection results of the same images; the last box has the highest score."""
    images = [{'id': i, 'file_name': f'{i}.jpg', 'height': 50, 'width': 60} for i in (4, 3)]
    boxes = [{'image_id': 4, 'bbox': [i, 2, 10, 20.5]} for i in range(3)]
    no_objects = [{'image_id': 4, 'bbox': [0, 0, 50, 50], 'iscrowd': 1}, {'image_id': 4, 'bbox': [0, 0, 0, 50]}]
    (tmp_path / 'annotations.json').write_text(json.dumps({'images': images, 'annotations': [*boxes, *no_objects]}))
    results = [{**box, 'score': score} for box, score in zip(boxes, (0.1, 0.1, 0.9), strict=True)]
    (tmp_path / 'results.json').write_text(json.dumps(results))
    return tmp_path


def test_annotations_are_ground_truth_by_default(coco_folder):
    path = coco_folder / 'annotations.json'
    store = import_coco(path)
    assert store.image_ids.tolist() == [3, 4] and store.size(3) == (50, 60)
    assert store.boxes(4).tolist() == [[i, 2, i + 10, 22.5] for i in range(3)]
    assert (len(store.boxes(3)), store.metadata['method']) == (0, 'ground-truth')
    assert import_coco(path, proposals=True).metadata['method'] == 'imported'
    assert_rejected('annotations.json .*ground-truth.*allow_ground_truth=True', load_proposals, path)
    assert len(load_proposals(path, allow_ground_truth=True)) == 2
    store.save(coco_folder / 'annotations.npz')
    assert_rejected('annotations.npz .*ground-truth', load_proposals, coco_folder / 'annotations.npz')
    assert len(load_proposals(coco_folder / 'annotations.npz', True)) == 2
    # An export keeps the method of its boxes.
    export_coco(store, coco_folder / 'again.json')
    assert_rejected('again.json .*ground-truth', load_proposals, coco_folder / 'again.json')
    export_coco(import_coco(path, proposals=True), coco_folder / 'again.json')
    assert len(load_proposals(coco_folder / 'again.json')) == 2


def test_results_are_ordered_by_score(coco_folder):
    store = import_coco(coco_folder / 'results.json', coco_folder / 'annotations.json')
    assert store.boxes(4)[:, 0].tolist() == [2, 0, 1]
    assert store.metadata['method'] == 'imported'
    assert_rejected('results.json .*--images-json', import_coco, coco_folder / 'results.json')


def test_invalid_jsons_are_rejected(coco_folder):
    valid = json.loads((coco_folder / 'annotations.json').read_text())
    path = coco_folder / 'x.json'
    assert_rejected('absent.json', import_coco, coco_folder / 'absent.json')
    for change, match in (
        ({'images': []}, 'x.json .*"images"'),
        ({'images': [{'id': 4, 'file_name': 'a.jpg'}]}, 'a.jpg .*"height" and "width"'),
        ({'images': [{**valid['images'][0], 'height': 0}]}, '4.jpg .*"height"'),
        ({'images': valid['images'][1:]}, 'image id 4'),
        ({'images': [valid['images'][0]] * 2}, 'occurs twice'),
        ({'annotations': None}, 'x.json .*"annotations"'),
        ({'annotations': [{'image_id': 4}]}, '"image_id": 4}'),
        ({'annotations': [{'image_id': 4, 'bbox': [1, 2]}]}, r'\[1, 2\]'),
        ({'annotations': [{'image_id': 4, 'bbox': [1, 2, 3, 'x']}]}, '"x"'),
    ):
        path.write_text(json.dumps({**valid, **change}))
        assert_rejected(match, import_coco, path)
    path.write_text('[{"image_id": 4}]')
    assert_rejected('"image_id": 4}', import_coco, path, coco_folder / 'annotations.json')
    path.write_text('[1, 2')
    assert_rejected('is not JSON', import_coco, path)


@pytest.mark.parametrize('value', ['NaN', 'Infinity', '-Infinity', '1e39'])  # the last is infinite in float32
@pytest.mark.parametrize('position', range(4))
def test_boxes_that_are_not_finite_are_dropped(coco_folder, value, position):
    path = coco_folder / 'annotations.json'
    content = json.loads(path.read_text())
    content['annotations'].insert(1, {'image_id': 4, 'bbox': ['VALUE' if i == position else 5 for i in range(4)]})
    path.write_text(json.dumps(content).replace('"VALUE"', value))
    store = import_coco(path)
    assert store.boxes(4).tolist() == [[i, 2, i + 10, 22.5] for i in range(3)]
    assert store.metadata[DROPPED_KEY] == 1
    assert export_coco(store, coco_folder / 'again.json') == 0
    assert import_coco(coco_folder / 'again.json').metadata == store.metadata


def test_stored_boxes_that_are_not_finite_are_left_out_of_the_export_and_not_trained(tmp_path):
    boxes = np.array([[0, 0, 5, 5], [np.nan, 0, 5, 5], [0, 0, np.inf, 5.5]], np.float32)
    entries = [(3, 'a.jpg', (9, 9), []), (4, 'b.jpg', (9, 9), boxes), (5, 'c.jpg', (9, 9), boxes[:1])]
    store = ProposalStore(entries)
    assert export_coco(store, tmp_path / 'x.json') == 2
    assert import_coco(tmp_path / 'x.json').boxes(4).tolist() == [[0, 0, 5, 5]]
    store.save(tmp_path / 'x.npz')
    assert_rejected('x.npz .*2 .*nan.*image id 4', load_proposals, tmp_path / 'x.npz')
