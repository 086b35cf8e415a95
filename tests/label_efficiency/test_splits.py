"""Subsets of the training images: nested, disjoint from the selection split, and independent of the order."""

import random

import pytest

from ccop_mm.label_efficiency.splits import choose_shares, select_subset, selection_split
from ccop_mm.utils.errors import InputError


@pytest.mark.parametrize('trial', range(20))
def test_subsets_are_nested_and_the_selection_split_is_disjoint(trial):
    rng = random.Random(trial)
    ids = rng.sample(range(10**6), rng.randint(10, 400))
    seed = rng.randrange(1000)
    counts = sorted(rng.randint(1, len(ids)) for _ in range(4))
    selection = selection_split(ids)
    assert len(selection) == len(set(selection)) == round(len(ids) / 5) and set(selection) < set(ids)
    for excluded in ((), selection):
        subsets = [select_subset(ids, count, seed, excluded) for count in counts]
        for count, subset in zip(counts, subsets, strict=True):
            assert len(set(subset)) == len(subset) == min(count, len(ids) - len(excluded))
            assert set(subset) <= set(ids) - set(excluded)
        for smaller, larger in zip(subsets, subsets[1:], strict=False):
            assert set(smaller) <= set(larger)
    shuffled = rng.sample(ids, len(ids))
    assert selection_split(shuffled) == selection
    assert select_subset(shuffled, counts[1], seed) == select_subset(ids, counts[1], seed)


def test_each_seed_has_other_images():
    subsets = {tuple(select_subset(range(100), 10, seed)) for seed in range(20)}
    assert len(subsets) == 20
    # Each image is as probable as any other: with 400 seeds, 40 times on average.
    counts = [0] * 100
    for seed in range(400):
        for image_id in select_subset(range(100), 10, seed):
            counts[image_id] += 1
    assert min(counts) > 15 and max(counts) < 75


def test_selection_split_is_limited():
    assert len(selection_split(range(8000))) == 1000
    with pytest.raises(InputError, match='9 training images'):
        selection_split(range(9))


def test_shares_keep_their_order_and_have_an_image():
    shares = choose_shares(250, [100, 0.01, 10])
    assert [share.num_images for share in shares] == [250, 1, 25]
    assert [share.percent for share in shares] == [100, 0.4, 10]
    assert [share.num_images for share in choose_shares(250, [1], [64, 8])] == [64, 8]
    assert str(shares[2]) == '25 images (10 %)'


@pytest.mark.parametrize(
    ('percents', 'counts', 'named'),
    [
        ([0], [], '0'),
        ([101], [], '101'),
        ([float('nan')], [], 'nan'),
        ([1], [0], '0'),
        ([1], [251], '251'),
        ([1, 0.9], [], '2 of 250'),
        ([], [], 'share'),
    ],
)
def test_invalid_shares(percents, counts, named):
    with pytest.raises(InputError, match=named):
        choose_shares(250, percents, counts)
