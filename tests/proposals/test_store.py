"""The proposals file."""

import io
import json
import os
import zipfile

import numpy as np
import pytest

from ccop_mm.errors import InputError
from ccop_mm.proposals import ProposalStore, store

SKIPPED = {'b/ö.jpg': 'truncated or damaged JPEG', 'a.jpg': 'the file is empty'}


def random_entries(seed=0):
    rng = np.random.default_rng(seed)
    ids = [7, 2**48 - 1, 0, 139, 12]
    names = ['x.jpg', os.fsdecode(b'caf\xe9.png'), 'ü/雪.jpg', 'y.jpg', 'z.jpg']
    counts = [3, 0, 1, 100, 20]
    return [
        (image_id, name, (int(height), int(width)), rng.uniform(0, 500, (count, 4)).astype(np.float32))
        for image_id, name, count, (height, width) in zip(ids, names, counts, rng.integers(1, 999, (5, 2)), strict=True)
    ]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / 'proposals.npz'
    ProposalStore(random_entries(), SKIPPED, {'mode': 'fast'}).save(path)
    return path


def refuse(path, match):
    with pytest.raises(InputError, match=match) as caught:
        ProposalStore.load(path)
    assert '\n' not in str(caught.value)


def check_content(loaded):
    entries = random_entries()
    assert loaded.image_ids.tolist() == sorted(entry[0] for entry in entries)
    assert len(loaded) == len(entries)
    for image_id, name, size, boxes in entries:
        assert image_id in loaded
        assert loaded.file_name(image_id) == name
        assert loaded.size(image_id) == size
        assert loaded.boxes(image_id).dtype == np.float32
        np.testing.assert_array_equal(loaded.boxes(image_id), boxes)
    assert loaded.skipped == SKIPPED
    assert loaded.metadata == {'mode': 'fast', 'format': 'ccop_mm proposals', 'format_version': 1}


def test_round_trip(saved):
    check_content(ProposalStore.load(saved))


def test_bytes_depend_on_the_content_alone(saved, tmp_path):
    entries = random_entries()[::-1]
    ProposalStore(entries, dict(reversed(SKIPPED.items())), {'mode': 'fast'}).save(tmp_path / 'other.npz')
    assert (tmp_path / 'other.npz').read_bytes() == saved.read_bytes()
    with zipfile.ZipFile(saved) as file:
        assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}


def test_what_a_caller_does_to_boxes_stays_with_the_caller(saved):
    loaded = ProposalStore.load(saved)
    loaded.boxes(139)[:] = 0
    check_content(loaded)


@pytest.mark.parametrize('image_id', [1, 13, 2**60])
def test_unknown_ids(saved, image_id):
    loaded = ProposalStore.load(saved)
    assert image_id not in loaded
    for method in (loaded.boxes, loaded.file_name, loaded.size):
        with pytest.raises(KeyError, match=str(image_id)):
            method(image_id)


def test_nothing_in_it(tmp_path):
    ProposalStore([]).save(tmp_path / 'empty.npz')
    loaded = ProposalStore.load(tmp_path / 'empty.npz')
    assert (len(loaded), 0 in loaded, loaded.skipped) == (0, False, {})


def test_an_id_twice_is_refused():
    with pytest.raises(ValueError, match='twice'):
        ProposalStore([*random_entries(), random_entries()[0]])


def test_files_that_are_no_store(tmp_path, saved):
    path = tmp_path / 'x.npz'
    refuse(path, 'no proposals file')
    path.write_bytes(b'')
    refuse(path, 'not a proposals file')
    path.write_text('{"images": []}')
    refuse(path, 'not a proposals file')
    np.savez(path, boxes=np.zeros((3, 4)))
    refuse(path, 'not a proposals file')
    np.savez(path, metadata=np.frombuffer(b'{"format": "other"}', np.uint8), checksum=np.zeros(1))
    refuse(path, 'not a proposals file')


def test_every_cut_is_refused(saved, tmp_path):
    content = saved.read_bytes()
    path = tmp_path / 'cut.npz'
    for length in range(2, len(content), 97):
        path.write_bytes(content[:length])
        refuse(path, 'cut short or altered')


def test_altered_bytes_are_refused_or_change_nothing(saved, tmp_path):
    content = bytearray(saved.read_bytes())
    path = tmp_path / 'altered.npz'
    refused = 0
    for place in range(0, len(content), 23):
        content[place] ^= 0x10
        path.write_bytes(content)
        content[place] ^= 0x10
        try:
            check_content(ProposalStore.load(path))  # such as a date in the zip's directory
        except InputError:
            refused += 1
    assert refused > len(content) // 23 * 0.8


def test_an_altered_box_is_refused(saved, tmp_path):
    """The zip file's own checksums are right here, as after an edit with another tool."""
    with np.load(saved, allow_pickle=False) as file:
        arrays = dict(file)
    arrays['boxes'][0, 0] += 1
    np.savez(tmp_path / 'edited.npz', **arrays)
    refuse(tmp_path / 'edited.npz', 'altered')


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(store, 'FORMAT_VERSION', 2)
    ProposalStore(random_entries()).save(tmp_path / 'new.npz')
    monkeypatch.undo()
    refuse(tmp_path / 'new.npz', 'update ccop_mm')


def test_pickled_payload_is_not_run(tmp_path, saved):
    ran = tmp_path / 'ran'

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(ran),)

    planted = io.BytesIO()
    np.save(planted, np.array([Payload()], dtype=object), allow_pickle=True)
    path = tmp_path / 'planted.npz'
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, 'w') as target:
        for info in source.infolist():
            target.writestr(info, planted.getvalue() if info.filename == 'boxes.npy' else source.read(info))
    refuse(path, 'altered')
    assert not ran.exists()


def test_metadata_is_readable_without_this_package(saved):
    with np.load(saved, allow_pickle=False) as file:
        assert json.loads(file['metadata'].tobytes())['mode'] == 'fast'
