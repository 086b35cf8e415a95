"""Choice of the learning rate."""

import math
import random

import pytest

from ccop_mm.label_efficiency.search import check_factors, choose_factor, choose_metric, extend_factors
from ccop_mm.utils.errors import InputError


@pytest.mark.parametrize('trial', range(30))
def test_choice_equals_a_plain_loop(trial):
    rng = random.Random(trial)
    factors = rng.sample([0.1, 0.3, 1.0, 3.0, 10.0], rng.randint(1, 5))
    # Few distinct values, so that there are ties.
    results = {factor: dict(AP=rng.choice([0, 0.01, 0.2]), AP50=rng.choice([0, 0.1])) for factor in factors}
    metric = rng.choice(['AP', 'AP50'])
    best, best_value, best_distance = None, 0, 0
    for factor in sorted(factors):
        value, distance = results[factor][metric], abs(math.log(factor))
        if best is None or value > best_value or (value == best_value and distance < best_distance):
            best, best_value, best_distance = factor, value, distance
    chosen = choose_factor(results, metric)
    assert (chosen.factor, chosen.metric) == (best, metric)
    assert chosen.values == {factor: results[factor][metric] for factor in factors}
    expected = '' if len(factors) == 1 or min(factors) < best < max(factors) else None
    assert chosen.edge == ({min(factors): 'lowest', max(factors): 'highest'}[best] if expected is None else expected)


def test_equal_distances_give_the_smaller_factor():
    results = {0.5: dict(AP=0.1), 2.0: dict(AP=0.1)}
    assert choose_factor(results, 'AP').factor == 0.5


@pytest.mark.parametrize(('values', 'metric'), [([0.01, 0.049], 'AP50'), ([0.01, 0.05], 'AP'), ([], 'AP50')])
def test_ap_decides_once_a_run_reaches_five_percent(values, metric):
    assert choose_metric([dict(AP=value, AP50=0.9) for value in values]) == metric


def test_grid_is_extended_by_its_last_step():
    assert extend_factors([0.3, 1, 3], 'highest') == 9
    assert extend_factors([0.3, 1, 3], 'lowest') == pytest.approx(0.09)


def test_factors_are_sorted():
    assert check_factors([3, 0.3, 1]) == [0.3, 1, 3]


@pytest.mark.parametrize('factors', [[], [1, 1], [0], [-1], [float('nan')], [float('inf')]])
def test_invalid_factors(factors):
    with pytest.raises(InputError, match='learning rate'):
        check_factors(factors)
