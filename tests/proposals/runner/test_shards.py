"""Shards of a set of images, and their merged file."""

import itertools
import re

import cv2
import pytest

from ccop_mm.proposals import ProposalStore, generate_proposals, list_images, merge
from ccop_mm.proposals.runner.shards import Shard
from ccop_mm.utils.errors import InputError


def generate(source, out, **options):
    generate_proposals(list_images(source), out, progress=False, **{'workers': 1, 'max_boxes': 5, **options})
    return out


def assert_rejected(match, paths, out):
    with pytest.raises(InputError, match=match) as caught:
        merge(paths, out)
    assert '\n' not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize('first', [0, 1])
@pytest.mark.parametrize('count', [1, 3, 9])
def test_every_image_is_in_one_shard(image_folder, count, first):
    images = list_images(image_folder)
    shards = [Shard.parse(f'{index}/{count}').select(images[::-1]) for index in range(first, first + count)]
    sizes = [len(shard) for shard in shards]
    assert sum(sizes) == 7 and max(sizes) - min(sizes) <= 1
    assert sorted(image.image_id for shard in shards for image in shard) == [image.image_id for image in images]


@pytest.mark.parametrize('text', ['', '3', '1/', '/2', '-1/3', '4/3', '1/0', '1/2/3', 'a/b', '1.0/2', '²/3'])
def test_invalid_shards_are_rejected(text):
    with pytest.raises(InputError, match=re.escape(repr(text))) as caught:
        Shard.parse(text)
    assert '\n' not in str(caught.value)


def test_shards_give_the_same_bytes_as_one_run(image_folder, tmp_path):
    (image_folder / 'bad.jpg').write_text('not an image')
    whole = generate(image_folder, tmp_path / 'whole.npz')
    for count in (2, 9):  # one of nine is empty
        parts = [generate(image_folder, tmp_path / f'{i}.npz', shard=f'{i}/{count}') for i in range(1, count + 1)]
        store = merge(parts[::-1], tmp_path / 'merged.npz')
        assert (tmp_path / 'merged.npz').read_bytes() == whole.read_bytes()
        assert (len(store), list(store.skipped)) == (7, ['bad.jpg'])


def test_files_of_several_sets_are_merged(image_folder, tmp_path, scene):
    (tmp_path / 'other').mkdir()
    cv2.imwrite(str(tmp_path / 'other' / 'new.png'), scene(9))
    paths = [generate(image_folder, tmp_path / '1.npz'), generate(tmp_path / 'other', tmp_path / '2.npz')]
    assert len(merge(paths, tmp_path / 'merged.npz')) == 8
    assert ProposalStore.load(tmp_path / 'merged.npz').image_id('new.png')


def test_files_that_do_not_belong_together_are_rejected(image_folder, tmp_path, scene):
    out = tmp_path / 'merged.npz'
    whole = generate(image_folder, tmp_path / 'whole.npz')
    parts = [generate(image_folder, tmp_path / f'{i}.npz', shard=f'{i}/3') for i in range(3)]
    assert_rejected('absent.npz', [tmp_path / 'absent.npz'], out)
    assert_rejected('0.npz', [parts[0], parts[0]], out)
    assert_rejected('1 of 3 .*1/3', [parts[0], parts[2]], out)
    assert_rejected(r'whole\.npz is not a shard', [*parts, whole], out)
    copy = tmp_path / 'copy.npz'
    copy.write_bytes(parts[1].read_bytes())
    assert_rejected(r'1\.npz and .*copy\.npz .*1/3', [*parts, copy], out)
    other_settings = generate(image_folder, tmp_path / 'other.npz', shard='2/3', seed=4)
    assert_rejected('seed .*0 and 4', [*parts[:2], other_settings], out)
    copy.write_bytes(whole.read_bytes())
    assert_rejected(r'whole\.npz and .*copy\.npz .*image id', [whole, copy], out)
    cv2.imwrite(str(image_folder / 'new.png'), scene(9))
    late = generate(image_folder, tmp_path / 'late.npz', shard='2/3')
    assert_rejected(r'0\.npz and .*late\.npz', [*parts[:2], late], out)


def test_image_skipped_in_one_file_and_used_in_another_is_rejected(tmp_path):
    box = [[0, 0, 9, 9]]
    ProposalStore([(1, 'a.png', (9, 9), box)]).save(tmp_path / '1.npz')
    ProposalStore([], {'a.png': 'the file is empty'}).save(tmp_path / '2.npz')
    for paths in itertools.permutations((tmp_path / '1.npz', tmp_path / '2.npz')):
        assert_rejected('a.png', list(paths), tmp_path / 'merged.npz')
