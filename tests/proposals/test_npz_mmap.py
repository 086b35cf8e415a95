"""Arrays in a memory-mapped file."""

import mmap
import zipfile

import numpy as np
import pytest

from ccop_mm.proposals import ProposalStore, npz_mmap
from ccop_mm.utils.errors import InputError


@pytest.fixture
def saved(tmp_path):
    boxes = np.random.default_rng(0).uniform(0, 500, (50, 4))
    store = ProposalStore([(7, 'x.jpg', (500, 600), boxes), (9, 'ü.jpg', (500, 600), [])], {'a.jpg': 'empty'})
    store.save(tmp_path / 'x.npz')
    return tmp_path / 'x.npz'


def test_arrays_are_aligned_read_only_pages_of_the_file(saved):
    arrays, _ = npz_mmap.read_arrays(saved)
    with zipfile.ZipFile(saved) as archive, np.load(saved, allow_pickle=False) as plain:
        assert archive.testzip() is None
        assert set(plain) == {*arrays, 'checksum'}
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, plain[name])
            assert isinstance(array.base, mmap.mmap) and not array.flags.writeable  # codespell:ignore writeable
            assert array.ctypes.data % 64 == 0


def test_checksum_depends_on_name_type_shape_and_bytes(saved):
    arrays, checksum = npz_mmap.read_arrays(saved)
    np.testing.assert_array_equal(npz_mmap.arrays_checksum(arrays, 2), checksum)
    boxes = arrays['boxes']
    changed = [
        {'boxes': boxes.reshape(-1)},
        {'boxes': boxes.view(np.int32)},
        {'boxes': boxes[::-1]},
        {'offsets': arrays['image_ids'], 'image_ids': arrays['offsets']},
    ]
    checksums = {npz_mmap.arrays_checksum({**arrays, **change}, 2).tobytes() for change in changed}
    assert len(checksums | {checksum.tobytes()}) == 5


def test_compressed_copy_is_rejected(saved):
    with np.load(saved, allow_pickle=False) as plain:
        np.savez_compressed(saved.with_name('small.npz'), **plain)
    with pytest.raises(InputError, match='small.npz is truncated'):
        npz_mmap.read_arrays(saved.with_name('small.npz'))


def test_order_of_members_does_not_matter(saved):
    with np.load(saved, allow_pickle=False) as plain:
        np.savez(saved.with_name('other.npz'), **{name: plain[name] for name in reversed(plain.files)})
    arrays, _ = npz_mmap.read_arrays(saved.with_name('other.npz'))  # some are unaligned there and copied
    for name, array in npz_mmap.read_arrays(saved)[0].items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].flags.aligned
