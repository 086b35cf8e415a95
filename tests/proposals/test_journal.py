"""The side file of a run."""

import pytest

from ccop_mm.errors import InputError
from ccop_mm.proposals.journal import Journal

HEADER = {'mode': 'fast', 'max_boxes': 100}
RECORDS = [{'id': 1, 'boxes': [0.0, 0.1, 1e-7]}, {'id': 2, 'name': 'caf\udce9 \n.png'}, [3]]


def records_of(path, header=HEADER):
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


def test_records_come_back_decoded(path):
    assert records_of(path) == RECORDS
    journal = Journal(path, HEADER, decode=len)
    assert journal.records == [2, 2, 1]
    journal.remove()
    assert not path.exists()


def test_appended_record_is_in_the_file_at_once(path):
    journal = Journal(path, HEADER, decode=list)
    journal.append([4])
    assert records_of(path) == [*RECORDS, [4]]
    journal.close()


def test_every_torn_end_loses_only_the_torn_record(path):
    content = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord('\n')]
    for length in range(len(content)):
        path.write_bytes(content[:length])
        whole = sum(end <= length for end in ends)
        journal = Journal(path, HEADER, decode=lambda value: value)
        assert journal.records == RECORDS[: max(0, whole - 1)]
        journal.append('next')
        journal.close()
        assert records_of(path) == [*RECORDS[: max(0, whole - 1)], 'next']


def test_altered_record_ends_the_reading(path):
    content = bytearray(path.read_bytes())
    content[content.index(b'caf')] ^= 1
    path.write_bytes(content)
    assert records_of(path) == RECORDS[:1]


def test_another_header_is_refused_and_the_file_left(path):
    content = path.read_bytes()
    with pytest.raises(InputError, match=r'begun with mode fast \(now quality\): .* delete the file') as caught:
        records_of(path, {**HEADER, 'mode': 'quality'})
    assert '\n' not in str(caught.value)
    assert path.read_bytes() == content


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    for path in (tmp_path, tmp_path / 'file' / 'out.partial'):
        with pytest.raises(InputError, match='cannot write'):
            records_of(path)
