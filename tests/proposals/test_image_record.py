"""Proposals of one image."""

import json

import cv2
import numpy as np
import pytest

from ccop_mm.proposals import ImageFile, image_record, propose
from ccop_mm.proposals.image_record import ImageRecord, file_size, propose_image
from ccop_mm.proposals.selection import filter_boxes, merge_boxes, sample_boxes
from ccop_mm.proposals.settings import ProposalSettings
from ccop_mm.utils.images import content_digest


@pytest.fixture
def image_file(tmp_path, scene):
    cv2.imwrite(str(tmp_path / 'x.png'), scene(3))
    return ImageFile(12, 'x.png', tmp_path / 'x.png')


def test_record_contains_the_selected_boxes_and_counts(image_file, scene):
    record = propose_image(image_file, ProposalSettings(max_boxes=6))
    candidates = propose(scene(3))
    filtered = filter_boxes(candidates)
    merged = merge_boxes(filtered)
    assert (record.image_id, record.file_name, record.reason, record.size) == (12, 'x.png', '', (72, 96))
    assert (record.num_bytes, record.digest) == (
        image_file.path.stat().st_size,
        content_digest(image_file.path.read_bytes()),
    )
    assert record.counts == (len(candidates), len(filtered), len(merged))
    np.testing.assert_array_equal(record.boxes, sample_boxes(merged, 6, 12))
    assert 0 < record.cpu[1] < record.cpu[0] < 60


def test_json_round_trip(image_file):
    for record in (
        propose_image(image_file, ProposalSettings()),
        ImageRecord(1, 'caf\udce9.png', -1, reason='the file does not exist'),
    ):
        values = json.loads(json.dumps(record.to_json()))
        again = ImageRecord.from_json(values)
        assert json.loads(json.dumps(again.to_json())) == values
        if record.boxes is not None:
            assert again.boxes.dtype == np.float32
            np.testing.assert_array_equal(again.boxes, record.boxes)


@pytest.mark.parametrize('error', [cv2.error('no'), MemoryError()])
def test_failed_search_becomes_a_reason(image_file, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(image_record, 'find_candidates', fail)
    record = propose_image(image_file, ProposalSettings())
    assert record.reason.startswith('search failed: ')
    assert record.num_bytes == image_file.path.stat().st_size


def test_missing_image_becomes_a_reason(image_file):
    image_file.path.unlink()
    record = propose_image(image_file, ProposalSettings())
    assert (record.reason, record.num_bytes, file_size(image_file)) == ('the file does not exist', -1, -1)


def test_bits_of_a_16_bit_image_are_counted(image_file, scene):
    assert propose_image(image_file, ProposalSettings()).value_bits == 0
    cv2.imwrite(str(image_file.path), scene(3).astype(np.uint16) << 4)
    record = propose_image(image_file, ProposalSettings())
    assert record.value_bits == 12
    values = json.loads(json.dumps(record.to_json()))
    assert ImageRecord.from_json(values).value_bits == 12
    del values['value_bits']  # of an unfinished run of an earlier release
    assert ImageRecord.from_json(values).value_bits == 0
