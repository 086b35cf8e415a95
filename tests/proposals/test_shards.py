"""Parts of a set of photos, and the file they give together."""

import itertools

import cv2
import pytest

from ccop_mm.errors import InputError
from ccop_mm.proposals import ProposalStore, list_photos
from ccop_mm.proposals.run import run
from ccop_mm.proposals.shards import Shard, merge


def quiet_run(source, out, **options):
    run(list_photos(source), out, progress=False, **{'workers': 1, 'max_boxes': 5, **options})
    return out


def refuse(match, paths, out):
    with pytest.raises(InputError, match=match) as caught:
        merge(paths, out)
    assert '\n' not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize('first', [0, 1])
@pytest.mark.parametrize('count', [1, 3, 9])
def test_every_photo_is_in_one_part(photo_folder, count, first):
    photos = list_photos(photo_folder)
    parts = [Shard.parse(f'{index}/{count}').of(photos[::-1]) for index in range(first, first + count)]
    sizes = [len(part) for part in parts]
    assert sum(sizes) == 7 and max(sizes) - min(sizes) <= 1
    assert sorted(photo.image_id for part in parts for photo in part) == [photo.image_id for photo in photos]


@pytest.mark.parametrize('text', ['', '3', '1/', '/2', '-1/3', '4/3', '1/0', '1/2/3', 'a/b', '1.0/2', '²/3'])
def test_parts_that_do_not_exist(text):
    with pytest.raises(InputError, match='shard is') as caught:
        Shard.parse(text)
    assert '\n' not in str(caught.value)


def test_shards_give_the_same_bytes_as_one_run(photo_folder, tmp_path):
    (photo_folder / 'bad.jpg').write_text('no photo')
    whole = quiet_run(photo_folder, tmp_path / 'whole.npz')
    for count in (2, 9):  # of nine, one is empty
        parts = [quiet_run(photo_folder, tmp_path / f'{i}.npz', shard=f'{i}/{count}') for i in range(1, count + 1)]
        store = merge(parts[::-1], tmp_path / 'merged.npz')
        assert (tmp_path / 'merged.npz').read_bytes() == whole.read_bytes()
        assert (len(store), list(store.skipped)) == (7, ['bad.jpg'])


def test_sets_without_shards_are_put_together(photo_folder, tmp_path, scene):
    (tmp_path / 'other').mkdir()
    cv2.imwrite(str(tmp_path / 'other' / 'new.png'), scene(9))
    paths = [quiet_run(photo_folder, tmp_path / '1.npz'), quiet_run(tmp_path / 'other', tmp_path / '2.npz')]
    assert len(merge(paths, tmp_path / 'merged.npz')) == 8
    assert ProposalStore.load(tmp_path / 'merged.npz').id_of('new.png')


def test_files_that_do_not_belong_together(photo_folder, tmp_path, scene):
    out = tmp_path / 'merged.npz'
    whole = quiet_run(photo_folder, tmp_path / 'whole.npz')
    parts = [quiet_run(photo_folder, tmp_path / f'{i}.npz', shard=f'{i}/3') for i in range(3)]
    refuse('no proposals file', [tmp_path / 'absent.npz'], out)
    refuse('named twice', [parts[0], parts[0]], out)
    refuse('1 of 3 shards are missing: 1/3', [parts[0], parts[2]], out)
    refuse(r'whole\.npz is no shard', [*parts, whole], out)
    copy = tmp_path / 'copy.npz'
    copy.write_bytes(parts[1].read_bytes())
    refuse('are the same shard, 1/3', [*parts, copy], out)
    other_rules = quiet_run(photo_folder, tmp_path / 'other.npz', shard='2/3', seed=4)
    refuse('made differently: seed 0 and 4', [*parts[:2], other_rules], out)
    copy.write_bytes(whole.read_bytes())
    refuse('both hold the image id', [whole, copy], out)
    cv2.imwrite(str(photo_folder / 'new.png'), scene(9))
    late = quiet_run(photo_folder, tmp_path / 'late.npz', shard='2/3')
    refuse('different lists of photos', [*parts[:2], late], out)


def test_a_photo_skipped_in_one_file_and_used_in_another(tmp_path):
    box = [[0, 0, 9, 9]]
    ProposalStore([(1, 'a.png', (9, 9), box)]).save(tmp_path / '1.npz')
    ProposalStore([], {'a.png': 'the file is empty'}).save(tmp_path / '2.npz')
    for paths in itertools.permutations((tmp_path / '1.npz', tmp_path / '2.npz')):
        refuse('both hold the photo a.png', list(paths), tmp_path / 'merged.npz')
