import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.runner import Runner
from mmselfsup.registry import DATA_SAMPLERS
from torch.utils.data import DataLoader

from ccop_mm.datasets import EpochIndexSampler, SampleKey
from ccop_mm.datasets.sampler import drawing_from


class Draws:
    """Each sample is one draw from each of the three global generators."""

    def __len__(self):
        return 11

    def __getitem__(self, key):
        with drawing_from(key):
            return key, draw()


def draw():
    return random.random(), np.random.rand(), float(torch.rand(()))


@pytest.fixture
def ranks(monkeypatch):
    """Sets (rank, world size) as the sampler sees them."""
    return lambda *info: monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda: info)


@pytest.mark.parametrize(
    'world, shuffle, round_up', [(1, True, True), (3, True, True), (3, True, False), (2, False, True)]
)
def test_hands_out_the_order_of_default_sampler(ranks, world, shuffle, round_up):
    for rank in range(world):
        ranks(rank, world)
        arguments = dict(shuffle=shuffle, seed=4, round_up=round_up)
        sampler, plain = EpochIndexSampler(range(11), **arguments), DefaultSampler(range(11), **arguments)
        for epoch in (0, 5):
            sampler.set_epoch(epoch)
            plain.set_epoch(epoch)
            assert [(key.seed, key.epoch, int(key), key.draw) for key in sampler] == [(4, epoch, i, i) for i in plain]
        assert len(sampler) == len(plain)


def test_an_epoch_that_has_begun_stays_what_it_was():
    sampler = EpochIndexSampler(range(5), seed=4)
    iterator = iter(sampler)
    sampler.set_epoch(1)
    assert {key.epoch for key in iterator} == {0}


def test_gets_the_seed_of_the_run():
    loader = Runner.build_dataloader(
        dict(dataset=Draws(), sampler=dict(type='mmselfsup.EpochIndexSampler'), batch_size=2, num_workers=0), seed=123
    )
    assert isinstance(loader.sampler, DATA_SAMPLERS.get('EpochIndexSampler'))
    assert next(iter(loader.sampler)).seed == 123


def two_epochs(workers, batch_size=2, first=0):
    sampler = EpochIndexSampler(Draws(), seed=7)
    loader = DataLoader(
        Draws(),
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


def test_samples_depend_on_their_key_alone(ranks):
    expected = two_epochs(workers=0)
    draws = [drawn for _, drawn in expected]
    assert len({number for drawn in draws for number in drawn}) == 3 * 2 * 11, 'all draws differ'
    for workers in (2, 5):
        assert two_epochs(workers) == expected
    assert two_epochs(workers=2, first=1) == expected[11:], 'as after a resume'
    halves = []
    for rank in range(2):
        ranks(rank, 2)
        halves.append(two_epochs(workers=rank, batch_size=3))
    for epoch in range(2):
        of_ranks = dict(row for half in halves for row in half if row[0].epoch == epoch)
        assert of_ranks == dict(expected[11 * epoch : 11 * (epoch + 1)])


def test_the_generators_go_on_where_they_were():
    def seed():
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)

    seed()
    expected = draw(), draw()
    seed()
    first = draw()
    with pytest.raises(KeyError), drawing_from(SampleKey(0, 0, 0)):
        draw()
        raise KeyError
    assert torch.initial_seed() == 3
    assert (first, draw()) == expected
