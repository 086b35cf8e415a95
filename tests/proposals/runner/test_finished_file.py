"""Finished proposals files are not replaced by those of other images or settings."""

import pytest

from ccop_mm.proposals import ProposalStore, generate_proposals, list_images, merge
from ccop_mm.proposals.runner.finished_file import check_replaceable
from ccop_mm.utils.errors import InputError

METADATA = {'method': 'random', 'seed': 3, 'max_aspect': None}


@pytest.fixture
def finished(tmp_path):
    """File of the images a.png and, skipped, b.png."""
    ProposalStore([(1, 'a.png', (9, 9), [[0, 0, 9, 9]])], {'b.png': 'the file is empty'}, METADATA).save(
        tmp_path / 'x.npz'
    )
    return tmp_path / 'x.npz'


def assert_kept(path, values, function, *args, **kwargs):
    content = path.read_bytes()
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert '\n' not in message and str(path) in message
    for value in values:
        assert value in message
    assert path.read_bytes() == content
    assert not path.with_name(f'{path.name}.partial').exists()


def test_same_images_and_settings_may_be_replaced(finished):
    check_replaceable(finished, ['b.png', 'a.png'], METADATA)
    check_replaceable(finished.with_name('new.npz'), ['c.png'], {})


@pytest.mark.parametrize(
    ('names', 'changes', 'values'),
    [
        (['a.png', 'b.png'], {'seed': 4}, ['seed 3 (now 4)']),
        (['a.png', 'b.png'], {'shard': {'index': 0, 'count': 2, 'list': 'abc'}}, ['all images', '0/2']),
        (['a.png'], {}, ['1 of its 2 ', 'b.png']),
        (['a.png', 'b.png', 'c.png'], {}, ['1 of the 3 ', 'c.png']),
        (['z.png'], {}, ['2 of its 2 ', 'a.png']),
    ],
)
def test_other_images_or_settings_are_rejected(finished, names, changes, values):
    assert_kept(finished, [*values, '--out'], check_replaceable, finished, names, {**METADATA, **changes})
    check_replaceable(finished, names, {**METADATA, **changes}, overwrite=True)


@pytest.mark.parametrize('damage', [lambda content: b'notes', lambda content: content[:-40], lambda content: b''])
def test_files_that_are_not_intact_are_rejected(finished, damage):
    finished.write_bytes(damage(finished.read_bytes()))
    assert_kept(finished, ['--out'], check_replaceable, finished, ['a.png', 'b.png'], METADATA)


def test_json_may_be_imported_again_as_another_method(finished):
    imported = {'method': 'ground-truth', 'imported_from': 'instances.json'}
    ProposalStore([(1, 'a.png', (9, 9), [])], metadata=imported).save(finished)
    check_replaceable(finished, ['a.png'], {**imported, 'method': 'imported'})
    assert_kept(
        finished, ['other.json'], check_replaceable, finished, ['a.png'], {**imported, 'imported_from': 'other.json'}
    )
    assert_kept(finished, ['1 of its 1 '], check_replaceable, finished, ['b.png'], {**imported, 'method': 'imported'})


def test_generation_keeps_a_finished_file(image_folder, tmp_path):
    out, options = tmp_path / 'x.npz', dict(workers=1, progress=False, method='random')
    images = list_images(image_folder)
    generate_proposals(images, out, **options)
    content = out.read_bytes()
    assert_kept(out, ['seed 0 (now 1)'], generate_proposals, images, out, seed=1, **options)
    assert_kept(out, ['7 '], generate_proposals, images[:3], out, **options)
    generate_proposals(images, out, **options)
    assert out.read_bytes() == content
    generate_proposals(images[:3], out, overwrite=True, **options)
    assert len(ProposalStore.load(out)) == 3


def test_merge_keeps_a_finished_file(image_folder, tmp_path):
    parts = [tmp_path / f'{index}.npz' for index in range(2)]
    for index, part in enumerate(parts):
        generate_proposals(
            list_images(image_folder), part, workers=1, progress=False, method='random', shard=f'{index}/2'
        )
    assert_kept(parts[0], ['shard'], merge, parts, parts[0])
    assert len(merge(parts, parts[0], overwrite=True)) == 7


def test_shard_is_replaced_only_by_another_division_of_the_same_images(finished):
    shard = {'index': 0, 'count': 2, 'photos': 'abc'}  # codespell:ignore photos
    ProposalStore([(1, 'a.png', (9, 9), [])], metadata={**METADATA, 'shard': shard}).save(finished)
    check_replaceable(finished, ['b.png'], {**METADATA, 'shard': {**shard, 'count': 3}})
    for change in ({'index': 1}, {'count': 3, 'photos': 'def'}):  # codespell:ignore photos
        other = {**METADATA, 'shard': {**shard, **change}}
        assert_kept(finished, ['0/2', 'abc'], check_replaceable, finished, ['a.png'], other)
    assert_kept(finished, ['0/2', 'abc'], check_replaceable, finished, ['a.png'], METADATA)
