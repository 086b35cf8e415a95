"""The proposals file."""

import copy
import hashlib
import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from ccop_mm.proposals import ProposalStore
from ccop_mm.utils.errors import InputError

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


def assert_rejected(path, match):
    with pytest.raises(InputError, match=match) as caught:
        ProposalStore.load(path)
    assert '\n' not in str(caught.value)


def assert_content(loaded):
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
    assert loaded.metadata == {'mode': 'fast', 'format': 'ccop_mm proposals', 'format_version': 2}


def test_round_trip(saved):
    assert_content(ProposalStore.load(saved))


def test_bytes_depend_on_the_content_only(saved, tmp_path):
    entries = random_entries()[::-1]
    ProposalStore(entries, dict(reversed(SKIPPED.items())), {'mode': 'fast'}).save(tmp_path / 'other.npz')
    assert (tmp_path / 'other.npz').read_bytes() == saved.read_bytes()
    with zipfile.ZipFile(saved) as file:
        assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}


def test_boxes_are_a_copy(saved):
    loaded = ProposalStore.load(saved)
    loaded.boxes(139)[:] = 0
    assert_content(loaded)


@pytest.mark.parametrize('image_id', [1, 13, 2**60])
def test_unknown_ids_raise_key_errors(saved, image_id):
    loaded = ProposalStore.load(saved)
    assert image_id not in loaded
    for method in (loaded.boxes, loaded.file_name, loaded.size):
        with pytest.raises(KeyError, match=str(image_id)):
            method(image_id)


def test_empty_store(tmp_path):
    ProposalStore([]).save(tmp_path / 'empty.npz')
    loaded = ProposalStore.load(tmp_path / 'empty.npz')
    assert (len(loaded), 0 in loaded, loaded.skipped) == (0, False, {})


def test_duplicate_ids_and_names_are_rejected():
    first = random_entries()[0]
    for entry in ((first[0], 'other.jpg', *first[2:]), (5, *first[1:])):
        with pytest.raises(ValueError, match='twice'):
            ProposalStore([*random_entries(), entry])


def test_other_files_are_rejected(tmp_path, saved):
    path = tmp_path / 'x.npz'
    assert_rejected(path, 'x.npz')
    path.write_bytes(b'')
    assert_rejected(path, 'x.npz is not')
    path.write_text('{"images": []}')
    assert_rejected(path, 'x.npz is not')
    np.savez(path, boxes=np.zeros((3, 4)))
    assert_rejected(path, 'x.npz is not')
    np.savez(path, metadata=np.frombuffer(b'{"format": "other"}', np.uint8), checksum=np.zeros(1))
    assert_rejected(path, 'x.npz is not')


def test_truncated_files_are_rejected(saved, tmp_path):
    content = saved.read_bytes()
    path = tmp_path / 'cut.npz'
    for length in range(2, len(content), 97):
        path.write_bytes(content[:length])
        assert_rejected(path, 'cut.npz is truncated')


def test_modified_bytes_are_rejected_or_change_nothing(saved, tmp_path):
    content = bytearray(saved.read_bytes())
    path = tmp_path / 'modified.npz'
    rejected = 0
    for place in range(0, len(content), 23):
        content[place] ^= 0x10
        path.write_bytes(content)
        content[place] ^= 0x10
        try:
            assert_content(ProposalStore.load(path))  # for example, a date in the directory of the zip file
        except InputError:
            rejected += 1
    # A quarter of such a small file is the directory of the zip file, padding and dates.
    assert rejected > len(content) // 23 * 0.65


def test_modified_box_is_rejected(saved, tmp_path):
    """The checksums of the zip file are correct, as after an edit with another tool."""
    with np.load(saved, allow_pickle=False) as file:
        arrays = dict(file)
    arrays['boxes'][0, 0] += 1
    np.savez(tmp_path / 'edited.npz', **arrays)
    assert_rejected(tmp_path / 'edited.npz', 'edited.npz is truncated')


def test_newer_format_is_rejected(saved, tmp_path):
    content = saved.read_bytes()
    # This invalidates the checksum of the zip member, which is not verified: our checksum covers the same bytes.
    (tmp_path / 'new.npz').write_bytes(content.replace(b'"format_version": 2', b'"format_version": 3'))
    assert_rejected(tmp_path / 'new.npz', 'new.npz .*3')


def write_format_1(path, boxes, checksum=None):
    """Writes format 1 with numpy: one skipped image, and two others, one of which has boxes."""
    metadata = json.dumps({'mode': 'fast', 'format': 'ccop_mm proposals', 'format_version': 1}, sort_keys=True)
    texts = {'names': 'y.jpgx.jpg', 'skipped_names': 'a.jpg', 'skipped_reasons': 'empty'}
    arrays = {
        'metadata': np.frombuffer(metadata.encode(), np.uint8),
        'image_ids': np.array([2, 7]),
        'sizes': np.array([[10, 20], [40, 50]], np.int32),
        'offsets': np.array([0, 0, len(boxes)]),
        'boxes': boxes,
        'names': np.frombuffer(texts['names'].encode(), np.uint8),
        'name_offsets': np.array([0, 5, 10]),
        'skipped_names': np.frombuffer(texts['skipped_names'].encode(), np.uint8),
        'skipped_name_offsets': np.array([0, 5]),
        'skipped_reasons': np.frombuffer(texts['skipped_reasons'].encode(), np.uint8),
        'skipped_reason_offsets': np.array([0, 5]),
    }
    digest = hashlib.blake2b(digest_size=32)
    for name, array in arrays.items():
        digest.update(f'{name} {array.dtype.str} {array.shape}'.encode() + array.tobytes())
    np.savez(path, checksum=np.frombuffer(digest.digest(), np.uint8), **arrays)


def test_format_1_is_read_and_saved_as_format_2(tmp_path):
    boxes = np.array([[1, 2, 30.5, 20], [0, 0, 9, 9]], np.float32)
    write_format_1(tmp_path / 'old.npz', boxes)
    old = ProposalStore.load(tmp_path / 'old.npz')
    again = ProposalStore(old.entries(), old.skipped, {'mode': 'fast'})
    for name, store in (('a.npz', old), ('b.npz', again), ('c.npz', pickle.loads(pickle.dumps(old)))):
        np.testing.assert_array_equal(store.boxes(7), boxes)
        assert (len(store.boxes(2)), store.file_name(2), store.size(7)) == (0, 'y.jpg', (40, 50))
        assert (store.skipped, store.digest(7)) == ({'a.jpg': 'empty'}, 0)
        assert store.metadata == {'mode': 'fast', 'format': 'ccop_mm proposals', 'format_version': 2}
        store.save(tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in ('a.npz', 'b.npz', 'c.npz')}) == 1
    content = bytearray((tmp_path / 'old.npz').read_bytes())
    content[content.index(boxes.tobytes())] ^= 1
    (tmp_path / 'old.npz').write_bytes(content)
    assert_rejected(tmp_path / 'old.npz', 'old.npz is truncated')


def test_whole_pixels_are_stored_exactly_in_half_the_space(tmp_path):
    rng = np.random.default_rng(0)
    sizes = {}
    for name, boxes in {
        'whole': rng.integers(0, 65536, (10000, 4)),
        'one too large': np.append(rng.integers(0, 65536, (9999, 4)), [[0, 0, 65536, 9]], axis=0),
        'one negative': np.append(rng.integers(0, 65536, (9999, 4)), [[-1, 0, 5, 9]], axis=0),
        'one fraction': np.append(rng.integers(0, 65536, (9999, 4)), [[0.5, 0, 5, 9]], axis=0),
        'one nan': np.append(rng.integers(0, 65536, (9999, 4)), [[np.nan, 0, 5, 9]], axis=0),
    }.items():
        ProposalStore([(1, 'x.jpg', (9, 9), boxes)]).save(tmp_path / name)
        loaded = ProposalStore.load(tmp_path / name).boxes(1)
        assert loaded.dtype == np.float32
        np.testing.assert_array_equal(loaded, boxes.astype(np.float32))
        sizes[name] = (tmp_path / name).stat().st_size
    assert sizes.pop('whole') < 0.55 * min(sizes.values())


def test_pickle_contains_the_path_and_checks_the_file(saved, tmp_path):
    loaded = ProposalStore.load(saved)
    loaded.skipped  # noqa: B018 (cached in the store, not in the pickle)
    content = pickle.dumps(loaded)
    assert len(content) < 1000
    assert_content(pickle.loads(content))
    assert_content(copy.deepcopy(loaded))
    assert_content(pickle.loads(pickle.dumps(ProposalStore(random_entries(), SKIPPED, {'mode': 'fast'}))))
    ProposalStore(random_entries(1), SKIPPED, {'mode': 'fast'}).save(saved)
    assert_content(loaded)  # still maps the pages of the old file
    with pytest.raises(InputError, match='proposals.npz'):
        pickle.loads(content)
    saved.unlink()
    with pytest.raises(InputError, match='proposals.npz'):
        pickle.loads(content)


def test_names_digests_and_counts(saved, tmp_path):
    loaded = ProposalStore.load(saved)
    for image_id, name, _, boxes in random_entries():
        assert loaded.image_id(name) == image_id
        assert loaded.num_boxes[loaded.image_ids.tolist().index(image_id)] == len(boxes)
        assert loaded.digest(image_id) == 0
    with pytest.raises(KeyError, match='absent'):
        loaded.image_id('absent')
    ProposalStore(random_entries(), digests={139: 2**64 - 1}).save(tmp_path / 'x.npz')
    digests = ProposalStore.load(tmp_path / 'x.npz')
    assert (digests.digest(139), digests.digest(12)) == (2**64 - 1, 0)


def test_pickled_payload_is_not_executed(tmp_path, saved):
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
    assert_rejected(path, 'planted.npz is truncated')
    assert not ran.exists()


def test_metadata_is_readable_without_this_package(saved):
    with np.load(saved, allow_pickle=False) as file:
        assert json.loads(file['metadata'].tobytes())['mode'] == 'fast'
