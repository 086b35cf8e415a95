"""Journal of a run."""

import re

import pytest

from ccop_mm.proposals.runner.journal import Journal
from ccop_mm.utils.errors import InputError

HEADER = {'mode': 'fast', 'max_boxes': 100}
RECORDS = [{'id': 1, 'boxes': [0.0, 0.1, 1e-7]}, {'id': 2, 'name': 'caf\udce9 \n.png'}, [3]]


def read_records(path, header=HEADER):
    journal = Journal(path, header, decode=lambda value: value)
    journal.close()
    return journal.records


@pytest.fixture
def path(tmp_path):
    path = tmp_path / 'folder' / 'out.partial'
    journal = Journal(path, HEADER, decode=dict)
    assert journal.records == []
    for record in RECORDS:
        journal.append(record)
    journal.close()
    return path


def test_records_are_restored_and_decoded(path):
    assert read_records(path) == RECORDS
    journal = Journal(path, HEADER, decode=len)
    assert journal.records == [2, 2, 1]
    journal.remove()
    assert not path.exists()


def test_appended_record_is_in_the_file_immediately(path):
    journal = Journal(path, HEADER, decode=list)
    journal.append([4])
    assert read_records(path) == [*RECORDS, [4]]
    journal.close()


def test_truncation_loses_only_the_truncated_record(path):
    content = path.read_bytes()
    ends = [offset + 1 for offset, byte in enumerate(content) if byte == ord('\n')]
    for length in range(len(content)):
        path.write_bytes(content[:length])
        num_lines = sum(end <= length for end in ends)
        journal = Journal(path, HEADER, decode=lambda value: value)
        assert journal.records == RECORDS[: max(0, num_lines - 1)]
        journal.append('next')
        journal.close()
        assert read_records(path) == [*RECORDS[: max(0, num_lines - 1)], 'next']


def test_reading_stops_at_a_modified_record(path):
    content = bytearray(path.read_bytes())
    content[content.index(b'caf')] ^= 1
    path.write_bytes(content)
    assert read_records(path) == RECORDS[:1]


def test_other_header_is_rejected_and_the_file_kept(path):
    content = path.read_bytes()
    with pytest.raises(InputError, match=r'out\.partial .*mode fast \(now quality\)') as caught:
        read_records(path, {**HEADER, 'mode': 'quality'})
    assert '\n' not in str(caught.value)
    assert path.read_bytes() == content


def test_unwritable_path_is_rejected(tmp_path):
    (tmp_path / 'file').touch()
    for path in (tmp_path, tmp_path / 'file' / 'out.partial'):
        with pytest.raises(InputError, match=re.escape(str(path))):
            read_records(path)
