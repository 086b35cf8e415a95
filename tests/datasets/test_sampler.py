import itertools
import pickle
import random

import numpy as np
import pytest
import torch
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.runner import Runner
from mmselfsup.registry import DATA_SAMPLERS
from torch.utils.data import DataLoader

from ccop_mm.datasets import EpochIndexSampler, SampleKey
from ccop_mm.datasets.sampler import SeededBatch, make_resumable, seeded_from


class RandomNumbers:
    """Dataset in which each sample is one random number from each of the three global generators."""

    def __len__(self):
        return 11

    def __getitem__(self, key):
        with seeded_from(key):
            return key, random_numbers()


def random_numbers():
    return random.random(), np.random.rand(), float(torch.rand(()))


@pytest.fixture
def set_rank(monkeypatch):
    """Sets the rank and the world size that the sampler sees."""
    return lambda *info: monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda: info)


@pytest.mark.parametrize(
    'world, shuffle, round_up', [(1, True, True), (3, True, True), (3, True, False), (2, False, True)]
)
def test_order_is_that_of_default_sampler(set_rank, world, shuffle, round_up):
    for rank in range(world):
        set_rank(rank, world)
        arguments = dict(shuffle=shuffle, seed=4, round_up=round_up)
        sampler, plain = EpochIndexSampler(range(11), **arguments), DefaultSampler(range(11), **arguments)
        for epoch in (0, 5):
            sampler.set_epoch(epoch)
            plain.set_epoch(epoch)
            keys = [(key.seed, key.epoch, int(key), key.sampler_index) for key in sampler]
            assert keys == [(4, epoch, i, i) for i in plain]
        assert len(sampler) == len(plain)


def test_set_epoch_does_not_affect_a_running_iterator():
    sampler = EpochIndexSampler(range(5), seed=4)
    iterator = iter(sampler)
    sampler.set_epoch(1)
    assert {key.epoch for key in iterator} == {0}


def test_runner_passes_its_seed():
    sampler = dict(type='mmselfsup.EpochIndexSampler')
    loader = Runner.build_dataloader(
        dict(dataset=RandomNumbers(), sampler=sampler, batch_size=2, num_workers=0), seed=123
    )
    assert isinstance(loader.sampler, DATA_SAMPLERS.get('EpochIndexSampler'))
    assert next(iter(loader.sampler)).seed == 123


def load_two_epochs(workers, batch_size=2, first=0):
    sampler = EpochIndexSampler(RandomNumbers(), seed=7)
    loader = DataLoader(
        RandomNumbers(),
        batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=lambda rows: rows,
    )
    samples = []
    for epoch in range(first, 2):
        sampler.set_epoch(epoch)
        samples += [row for batch in loader for row in batch]
    return samples


def test_samples_depend_on_their_key_only(set_rank):
    expected = load_two_epochs(workers=0)
    assert len({number for _, numbers in expected for number in numbers}) == 3 * 2 * 11, 'all numbers differ'
    for workers in (2, 5):
        assert load_two_epochs(workers) == expected
    assert load_two_epochs(workers=2, first=1) == expected[11:], 'as after resuming'
    by_rank = []
    for rank in range(2):
        set_rank(rank, 2)
        by_rank.append(load_two_epochs(workers=rank, batch_size=3))
    for epoch in range(2):
        of_epoch = dict(row for rows in by_rank for row in rows if row[0].epoch == epoch)
        assert of_epoch == dict(expected[11 * epoch : 11 * (epoch + 1)])


def test_generator_states_are_restored():
    def seed():
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)

    seed()
    expected = random_numbers(), random_numbers()
    seed()
    first = random_numbers()
    with pytest.raises(KeyError), seeded_from(SampleKey(0, 0, 0)):
        random_numbers()
        raise KeyError
    assert torch.initial_seed() == 3
    assert (first, random_numbers()) == expected


class MixedShapes:
    """Dataset of 11 landscape and portrait images, whose samples are an index and random numbers."""

    def __init__(self):
        self.loaded = []

    def __len__(self):
        return 11

    def get_data_info(self, index):
        return dict(width=4 if index % 3 else 2, height=3)

    def __getitem__(self, index):
        self.loaded.append(index)
        return index, random_numbers()


def make_loader(sampler, workers=0, rank=0, batch_sampler=AspectRatioBatchSampler):
    dataset = MixedShapes()
    sampler = sampler(dataset, shuffle=True, seed=3)
    options = dict(num_workers=workers, collate_fn=list)
    loader = (
        DataLoader(dataset, 2, sampler=sampler, **options)
        if batch_sampler is None
        else DataLoader(dataset, batch_sampler=batch_sampler(sampler, 2), **options)
    )
    assert make_resumable(loader, 7, rank) and make_resumable(loader, 7, rank)
    return loader


@pytest.mark.parametrize('batch_sampler', [AspectRatioBatchSampler, None])
@pytest.mark.parametrize('sampler', [InfiniteSampler, DefaultSampler, EpochIndexSampler])
def test_skipped_batches_are_not_loaded(sampler, batch_sampler):
    def batches(skipped, count):
        """Continues a finite sampler with the next epoch, as mmengine does."""
        loader = make_loader(sampler, batch_sampler=batch_sampler)
        loader.batch_sampler.iteration = skipped
        first = loader.batch_sampler.skip(skipped)
        assert first == (0 if sampler is InfiniteSampler else max(skipped - 1, 0) // 6)
        assert not loader.dataset.loaded
        epochs = ((loader.batch_sampler.sampler.set_epoch(epoch), loader)[1] for epoch in itertools.count(first))
        found = list(itertools.islice(itertools.chain.from_iterable(epochs), count))
        if sampler is EpochIndexSampler:  # its dataset seeds the samples
            return [[index for index, _ in batch] for batch in found]
        return found

    expected = batches(0, 20)
    for skipped in (1, 5, 6, 8, 14):  # 6 batches per epoch
        assert batches(skipped, 20 - skipped) == expected[skipped:]


def test_samples_of_any_dataset_depend_on_seed_rank_and_iteration_only():
    expected = list(itertools.islice(make_loader(InfiniteSampler), 6))
    numbers = [number for batch in expected for _, row in batch for number in row]
    assert len(set(numbers)) == len(numbers) == 6 * 2 * 3, 'all numbers differ'
    loader = make_loader(InfiniteSampler, workers=2)
    loader.batch_sampler.skip(2)
    loader.batch_sampler.iteration = 2
    assert list(itertools.islice(loader, 4)) == expected[2:]
    other = next(iter(make_loader(InfiniteSampler, rank=1)))
    assert [index for index, _ in other] == [index for index, _ in expected[0]] and other != expected[0]


def test_make_resumable_keeps_the_attributes_of_the_loader():
    loader = make_loader(InfiniteSampler, batch_sampler=None)
    assert loader.batch_size == 2 and loader.batch_sampler.batch_size == 2
    assert isinstance(loader.batch_sampler.sampler, InfiniteSampler) and len(loader) == 6


def test_loader_without_batches_is_not_resumable():
    assert not make_resumable(DataLoader(range(3), batch_size=None), 0, 0)


def test_seeded_batch_is_pickled_without_seeding():
    random.seed(1)
    expected = random_numbers()
    random.seed(1)
    batch = pickle.loads(pickle.dumps(SeededBatch([4, 5], (1, 2))))
    assert (type(batch), len(batch), batch.entropy) == (SeededBatch, 2, (1, 2))
    assert random.random() == expected[0]
    assert [(index, random.random()) for index in batch] == [(index, random.random()) for index in batch]
