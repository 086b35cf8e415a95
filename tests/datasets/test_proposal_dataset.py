import json
import re

import cv2
import numpy as np
import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset, default_collate
from mmengine.fileio import LocalBackend, register_backend
from mmselfsup.registry import DATASETS, TRANSFORMS
from torch.utils.data import DataLoader

from ccop_mm.datasets import EpochIndexSampler, SampleKey
from ccop_mm.proposals.store import ProposalStore
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import image_id_from_path

PIPELINE = [
    dict(type='mmselfsup.LoadUnlabeledImage'),
    dict(type='mmselfsup.TwoObjectViews', transforms=[dict(type='mmselfsup.ObjectResizedCrop', size=64)]),
    dict(
        type='mmselfsup.PackSelfSupInputs', pseudo_label_keys=['boxes_q', 'boxes_k'], meta_keys=['img_path', 'img_id']
    ),
]


@pytest.fixture
def folder(tmp_path):
    """A folder of five images; image i has i proposals, [i + j, i, i + j + 30, i + 30] for each j < i."""
    rng = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    entries = []
    for number in range(5):
        name = f'{number}.png'
        cv2.imwrite(str(tmp_path / 'images' / name), rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        boxes = [[number + j, number, number + j + 30, number + 30] for j in range(number)]
        entries.append((image_id_from_path(name), name, (60, 80), boxes))
    # The store is sorted by id, not by name: a lookup by position would assign the boxes of other images.
    ProposalStore(reversed(entries)).save(tmp_path / 'proposals.npz')
    return tmp_path


def build(folder, **changes):
    arguments = {**dict(proposal_file='proposals.npz', data_root=str(folder), pipeline=PIPELINE), **changes}
    return DATASETS.build(dict(type='mmselfsup.ProposalDataset', **arguments))


def test_proposals_are_looked_up_by_image(folder):
    dataset = build(folder)
    assert len(dataset) == 5
    for index in range(5):
        info = dataset.get_data_info(index)
        number = int(re.search(r'(\d)\.png', info['img_path']).group(1))
        assert info['img_id'] == image_id_from_path(f'{number}.png')
        assert len(info['proposals']) == len(info['proposal_ids']) == number
        assert (info['proposals'][:, 1] == number).all()
        assert info['proposal_img_shape'] == (60, 80)


@pytest.mark.slow
def test_num_proposals_limits_the_boxes_per_image(folder):
    assert max(len(build(folder, num_proposals=2).get_data_info(i)['proposals']) for i in range(5)) == 2


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_of_a_data_loader(folder, workers):
    loader = DataLoader(build(folder), batch_size=5, num_workers=workers, collate_fn=default_collate)
    batch = next(iter(loader))
    assert [view.shape for view in batch['inputs']] == [(5, 3, 64, 64)] * 2
    assert len(batch['data_samples']) == 5
    for sample in batch['data_samples']:
        assert sample.img_id == image_id_from_path(sample.img_path.rpartition('/')[2])
        assert sample.pseudo_label.boxes_q.shape == sample.pseudo_label.boxes_k.shape
        assert sample.pseudo_label.boxes_q.shape[1] == 4


def test_images_are_listed_by_a_coco_json(folder):
    images = [dict(id=10 + n, file_name=f'{n}.png') for n in range(3)]
    (folder / 'images.json').write_text(json.dumps(dict(images=images)))
    store = ProposalStore([(10 + n, f'{n}.png', (60, 80), [[n, 0, n + 20, 20]]) for n in range(3)])
    store.save(folder / 'proposals.npz')
    dataset = build(folder, ann_file='images.json')
    assert [dataset.get_data_info(i)['img_id'] for i in range(3)] == [10, 11, 12]
    assert [dataset.get_data_info(i)['proposals'][0, 0] for i in range(3)] == [0, 1, 2]


def test_images_without_entry_in_the_proposals_file_raise(folder):
    (folder / 'images' / '3.png').rename(folder / 'images' / 'new.png')
    (folder / 'images' / '4.png').rename(folder / 'images' / 'newer.png')
    with pytest.raises(InputError, match=r'proposals\.npz .*2 of the 5 .*(new|newer)\.png.*tools/propose\.py'):
        build(folder)


def test_proposals_of_another_dataset_with_the_same_ids_raise(folder):
    images = [dict(id=1, file_name='0.png'), dict(id=2, file_name='1.png')]
    (folder / 'images.json').write_text(json.dumps(dict(images=images)))
    ProposalStore([(1, 'a.png', (60, 80), []), (2, 'b.png', (60, 80), [])]).save(folder / 'proposals.npz')
    with pytest.raises(InputError, match=r'2 of the 2 .*0\.png .*1\)'):
        build(folder, ann_file='images.json')


def test_ground_truth_raises_unless_allowed(folder):
    images = [dict(id=10 + n, file_name=f'{n}.png', height=60, width=80) for n in range(3)]
    annotations = [dict(id=n, image_id=10 + n, bbox=[n, 0, 20, 20.5]) for n in range(3)]
    (folder / 'images.json').write_text(json.dumps(dict(images=images, annotations=annotations)))
    entries = [(10 + n, f'{n}.png', (60, 80), [[n, 0, n + 20, 20.5]]) for n in range(3)]
    ProposalStore(entries, metadata={'method': 'ground-truth'}).save(folder / 'truth.npz')
    for file in ('images.json', 'truth.npz'):
        with pytest.raises(InputError, match=f'{file}.*allow_ground_truth=True') as caught:
            build(folder, ann_file='images.json', proposal_file=file)
        assert '\n' not in str(caught.value)
        dataset = build(folder, ann_file='images.json', proposal_file=file, allow_ground_truth=True)
        assert [dataset.get_data_info(i)['proposals'].tolist() for i in range(3)] == [
            [[n, 0, n + 20, 20.5]] for n in range(3)
        ]


def test_relative_proposal_file_is_resolved_before_following_a_linked_image_folder(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp('elsewhere') / 'images'
    (folder / 'images').rename(elsewhere)
    (folder / 'images').symlink_to(elsewhere)
    dataset = build(
        folder, data_root=str(folder / 'images'), data_prefix=dict(img_path=''), proposal_file='../proposals.npz'
    )
    assert len(dataset) == 5
    assert dataset.proposal_file == str(folder / 'proposals.npz')


@pytest.mark.slow
def test_dataset_can_be_sent_to_forkserver_workers(folder):
    loader = DataLoader(
        build(folder), batch_size=5, num_workers=1, collate_fn=default_collate, multiprocessing_context='forkserver'
    )
    assert len(next(iter(loader))['data_samples']) == 5


def test_missing_files_are_named_in_the_error(folder):
    with pytest.raises(InputError, match='absent'):
        build(folder, data_prefix=dict(img_path='absent/'))
    (folder / 'proposals.npz').unlink()
    with pytest.raises(InputError, match=r'proposals\.npz'):
        build(folder)


def test_images_skipped_during_proposal_generation_are_left_out(folder):
    store = ProposalStore.load(folder / 'proposals.npz')
    entries = [
        (image_id, store.file_name(image_id), store.size(image_id), store.boxes(image_id))
        for image_id in store.image_ids.tolist()
        if store.file_name(image_id) != '2.png'
    ]
    ProposalStore(entries, skipped={'2.png': 'truncated'}).save(folder / 'proposals.npz')
    dataset = build(folder)
    assert len(dataset) == 4
    assert not any('2.png' in dataset.get_data_info(i)['img_path'] for i in range(4))


def test_unreadable_image_is_replaced(folder):
    (folder / 'images' / '2.png').write_bytes(b'no image')
    dataset = build(folder)
    index = next(i for i in range(5) if '2.png' in dataset.get_data_info(i)['img_path'])
    for _ in range(5):
        assert '2.png' not in dataset[index]['data_samples'].img_path


def test_only_unreadable_images_raise_one_line(folder):
    for number in range(5):
        (folder / 'images' / f'{number}.png').write_bytes(b'')
    with pytest.raises(InputError, match=r'5 of the 5 .*\d\.png.* empty') as caught:
        build(folder, max_unreadable_ratio=1.0)[0]
    assert len(str(caught.value).splitlines()) == 1


#: Transforms that use the generators of torch, Python and numpy.
RANDOM_VIEW = [
    dict(type='mmselfsup.ObjectResizedCrop', size=32),
    dict(type='RandomApply', transforms=[dict(type='mmselfsup.ColorJitter', brightness=0.4)], prob=0.8),
    dict(type='mmselfsup.RandomGaussianBlur', sigma_min=0.1, sigma_max=2.0, prob=0.5),
    dict(type='mmselfsup.ObjectFlip'),
]


def epoch_bytes(dataset, workers, epoch):
    """Returns path, views and boxes of every sample of a shuffled epoch, as bytes."""
    sampler = EpochIndexSampler(dataset, seed=3)
    sampler.set_epoch(epoch)
    samples = []
    for row in DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=workers):
        label = row['data_samples'].pseudo_label
        arrays = [*row['inputs'], label.boxes_q, label.boxes_k]
        samples.append((row['data_samples'].img_path, *(array.numpy().tobytes() for array in arrays)))
    return samples


def test_sample_and_replacement_of_unreadable_images_depend_on_the_key_only(folder):
    (folder / 'images' / '2.png').write_bytes(b'no image')
    (folder / 'images' / '3.png').write_bytes(b'no image')
    views = dict(type='mmselfsup.TwoObjectViews', transforms=RANDOM_VIEW)
    dataset = build(folder, max_unreadable_ratio=1.0)
    dataset.pipeline.transforms[1] = TRANSFORMS.build(views)
    expected = epoch_bytes(dataset, 0, epoch=1)
    np.random.seed(0)  # the generator state of the process has no effect
    assert epoch_bytes(dataset, 0, epoch=1) == expected
    for workers in (1, 3):
        assert epoch_bytes(dataset, workers, epoch=1) == expected
    keys = [SampleKey(3, epoch, 0) for epoch in range(4)]
    assert len({dataset[key]['inputs'][0].numpy().tobytes() for key in keys}) == 4, 'epochs differ'
    index = next(i for i in range(5) if '2.png' in dataset.get_data_info(i)['img_path'])
    replacements = {dataset[SampleKey(3, epoch, index)]['data_samples'].img_path for epoch in range(20)}
    assert len(replacements) == 3, 'every readable image can replace it'


#: The pipeline of the configs: geometric transforms in the loader, photometric ones on the device.
SPLIT = [
    dict(type='mmselfsup.LoadUnlabeledImage', decode=False),
    dict(
        type='mmselfsup.SplitTwoObjectViews',
        transforms=[
            dict(type='mmselfsup.ObjectResizedCrop', size=32),
            dict(
                type='RandomApply',
                transforms=[dict(type='mmselfsup.ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)],
                prob=0.8,
            ),
            dict(type='mmselfsup.RandomGaussianBlur', sigma_min=0.1, sigma_max=2.0, prob=0.5),
            dict(type='mmselfsup.ObjectFlip'),
        ],
        min_common=1,
        max_redraws=3,
    ),
    dict(type='mmselfsup.PackObjectViews', pseudo_label_keys=['boxes_q', 'boxes_k'], meta_keys=['img_path', 'img_id']),
]


def sample_bytes(batch, row):
    """Returns image id, views, boxes and photometric parameters of one sample of a batch, as bytes."""
    label = batch['data_samples'][row].pseudo_label
    arrays = [*(view[row] for view in batch['inputs']), label.boxes_q, label.boxes_k, batch['photometric'][row]]
    return batch['data_samples'][row].img_id, *(array.numpy().tobytes() for array in arrays)


def load_epochs(dataset, workers, epochs, batch_size=2):
    sampler = EpochIndexSampler(dataset, seed=3, round_up=False)
    loader = DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=default_collate,
        persistent_workers=workers > 0,
    )
    samples = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        samples.append([sample_bytes(batch, row) for batch in loader for row in range(len(batch['data_samples']))])
    return samples


def test_batches_are_bitwise_equal_for_any_workers_and_ranks_and_after_resuming(folder, monkeypatch):
    (folder / 'images' / '2.png').write_bytes(b'no image')  # its replacement must be reproducible as well
    dataset = build(folder, pipeline=SPLIT)
    expected = load_epochs(dataset, 0, range(3))
    assert not set(expected[0]) & set(expected[1]), 'every epoch is different'
    for workers in (2, 5):
        assert load_epochs(dataset, workers, range(3)) == expected
    assert load_epochs(dataset, 2, [2]) == expected[2:], 'resumed in the third epoch'
    union = [set() for _ in range(3)]
    for rank in range(2):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, 2))
        for epoch, samples in enumerate(load_epochs(dataset, rank, range(3), batch_size=3)):
            assert 0 < len(samples) < 5
            union[epoch] |= set(samples)
    assert union == [set(samples) for samples in expected]


def test_split_views_show_the_image_and_its_boxes(folder):
    dataset = build(folder, pipeline=SPLIT)
    image = cv2.imread(str(folder / 'images' / '4.png'))
    index = next(i for i in range(5) if '4.png' in dataset.get_data_info(i)['img_path'])
    sample = dataset[SampleKey(0, 0, index)]
    assert sample['data_samples'].img_id == image_id_from_path('4.png')
    assert abs(sample['inputs'][0].float().mean() - image.mean()) < 8
    assert 1 <= len(sample['data_samples'].pseudo_label.boxes_q) <= 4


def test_dataset_wrappers_of_mmengine_accept_sample_keys(folder):
    dataset = build(folder, pipeline=SPLIT)
    repeated = RepeatDataset(dataset, times=3)
    both = ConcatDataset([dataset, dataset])

    def sample(data, key):
        row = data[key]
        return row['data_samples'].img_id, row['inputs'][0].numpy().tobytes()

    key = SampleKey(3, 1, 4)
    assert sample(repeated, key) == sample(both, key) == sample(dataset, key)
    again = sample(repeated, SampleKey(3, 1, 9))
    assert again[0] == sample(dataset, key)[0], 'the same image'
    assert again != sample(dataset, key), 'another augmentation'
    assert again == sample(both, SampleKey(3, 1, 9)) == sample(dataset, SampleKey(3, 1, 4, sampler_index=9))
    epochs = [load_epochs(both, workers, range(1)) for workers in (0, 2)]
    assert epochs[0] == epochs[1] and len(epochs[0][0]) == 10


def test_relative_proposal_file_is_resolved_before_following_a_linked_data_root(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    (elsewhere / 'linked').symlink_to(folder)
    (folder / 'proposals.npz').rename(elsewhere / 'proposals.npz')
    dataset = build(elsewhere / 'linked', proposal_file='../proposals.npz')
    assert len(dataset) == 5


@pytest.mark.parametrize('listed', [True, False])
def test_images_of_a_storage_backend(folder, listed):
    class VaultBackend(LocalBackend):
        """Storage whose prefix is not a folder."""

        def get(self, filepath):
            return super().get(str(filepath).replace('vault://', f'{folder}/'))

    register_backend('vault', VaultBackend, force=True, prefixes='vault')
    arguments = dict(data_root=None, proposal_file=str(folder / 'proposals.npz'))
    if listed:
        images = [dict(id=image_id_from_path(f'{n}.png'), file_name=f'{n}.png') for n in range(4)]
        (folder / 'images.json').write_text(json.dumps(dict(images=images)))
        arguments['ann_file'] = str(folder / 'images.json')
    dataset = build(folder, pipeline=SPLIT, data_prefix=dict(img_path='vault://images'), **arguments)
    local = build(folder, pipeline=SPLIT, **({'ann_file': 'images.json'} if listed else {}))
    assert len(dataset) == len(local) == (4 if listed else 5)
    for index in range(len(local)):
        sample, other = dataset[SampleKey(0, 0, index)], local[SampleKey(0, 0, index)]
        assert sample['data_samples'].img_path.startswith('vault://images/')
        assert sample['inputs'][0].equal(other['inputs'][0])


def test_too_many_unreadable_images_raise_in_workers(folder):
    for number in (1, 2, 3):
        (folder / 'images' / f'{number}.png').write_bytes(b'no image')
    with pytest.raises(InputError, match=r'max_unreadable_ratio=0\.01'):
        load_epochs(build(folder, pipeline=SPLIT), 2, range(2))


@pytest.mark.slow
def test_data_list_contains_image_ids_only(folder):
    dataset = build(folder, pipeline=SPLIT)
    assert dataset.data_list == [], 'serialized, so that forked workers share its pages'
    assert len(dataset.data_bytes) / len(dataset) < 64, 'paths are in the proposal store'
