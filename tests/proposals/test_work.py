"""What is done with one photo."""

import json

import cv2
import numpy as np
import pytest

from ccop_mm.proposals import Photo, propose, work
from ccop_mm.proposals.rules import Rules
from ccop_mm.proposals.select import filter_boxes, merge_boxes, sample_boxes
from ccop_mm.proposals.sources import digest_of
from ccop_mm.proposals.work import Record, process


@pytest.fixture
def photo(tmp_path, scene):
    cv2.imwrite(str(tmp_path / 'x.png'), scene(3))
    return Photo(12, 'x.png', tmp_path / 'x.png')


def test_record_of_a_photo(photo, scene):
    record = process(photo, Rules(max_boxes=6))
    raw = propose(scene(3))
    ruled = filter_boxes(raw)
    merged = merge_boxes(ruled)
    assert (record.image_id, record.file_name, record.reason, record.size) == (12, 'x.png', '', (72, 96))
    assert (record.num_bytes, record.digest) == (photo.path.stat().st_size, digest_of(photo.path.read_bytes()))
    assert record.counts == (len(raw), len(ruled), len(merged))
    np.testing.assert_array_equal(record.boxes, sample_boxes(merged, 6, 12))
    assert all(seconds > 0 for seconds in record.cpu)


def test_json_there_and_back(photo):
    for record in (process(photo, Rules()), Record(1, 'caf\udce9.png', -1, reason='the file does not exist')):
        values = json.loads(json.dumps(record.to_json()))
        again = Record.from_json(values)
        assert json.loads(json.dumps(again.to_json())) == values
        if record.boxes is not None:
            assert again.boxes.dtype == np.float32
            np.testing.assert_array_equal(again.boxes, record.boxes)


@pytest.mark.parametrize('error', [cv2.error('no'), MemoryError()])
def test_a_search_that_fails_is_a_reason(photo, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(work, 'find_boxes', fail)
    record = process(photo, Rules())
    assert record.reason.startswith('search failed: ')
    assert record.num_bytes == photo.path.stat().st_size


def test_a_photo_that_is_gone(photo):
    photo.path.unlink()
    record = process(photo, Rules())
    assert (record.reason, record.num_bytes, work.num_bytes(photo)) == ('the file does not exist', -1, -1)
