"""Which rules there are, and what they may be."""

import json
import math

import pytest

from ccop_mm.errors import InputError
from ccop_mm.proposals.rules import METHODS, Rules


def test_defaults_are_the_paper_s():
    rules = Rules()
    assert (rules.method, rules.mode, rules.min_area, rules.max_aspect) == ('selective-search', 'fast', 144, 3)
    assert (rules.merge, rules.merge_iou, rules.max_boxes, rules.seed) == ('largest', 0.5, 100, 0)
    assert Rules.of() == rules


def test_true_boxes_are_taken_as_they_are_unless_told_otherwise():
    rules = Rules.of('ground-truth', min_area=9)
    assert (rules.min_area, rules.max_aspect, rules.merge, rules.max_boxes) == (9, math.inf, 'none', 100)


@pytest.mark.parametrize('method', METHODS)
def test_json_there_and_back(method):
    rules = Rules.of(method, seed=3, max_boxes=7)
    values = json.loads(json.dumps(rules.to_json(), allow_nan=False))
    assert ('mode' in values) == ('max_side' in values) == (method == 'selective-search')
    assert Rules.from_json({**values, 'opencv': '4.12', 'format_version': 2}) == rules


def test_json_of_the_first_release_and_of_others():
    first = {'mode': 'quality', 'min_area': 144.0, 'max_aspect': 3.0, 'merge_iou': 0.5, 'max_boxes': 100}
    assert Rules.from_json(first) == Rules(mode='quality', engine='opencv', max_side=0)
    for values in ({}, {'method': 'imported'}):
        with pytest.raises(KeyError):
            Rules.from_json(values)


def test_whole_and_broken_numbers_are_the_same_rule():
    assert json.dumps(Rules(min_area=144).to_json()) == json.dumps(Rules(min_area=144.0).to_json())


@pytest.mark.parametrize(
    ('rule', 'value'),
    [
        ('method', 'magic'),
        ('mode', 'slow'),
        ('max_side', 31),
        ('max_side', -1),
        ('min_area', -1),
        ('min_area', math.nan),
        ('max_aspect', 1),
        ('max_aspect', math.nan),
        ('merge', 'all'),
        ('merge_iou', 0),
        ('merge_iou', 1.5),
        ('max_boxes', 0),
        ('seed', -1),
        ('seed', 2**32),
    ],
)
def test_values_out_of_range(rule, value):
    with pytest.raises(InputError, match=str(value)) as caught:
        Rules(**{rule: value})
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('rule', [{'mode': 'quality'}, {'max_side': 500}])
def test_rules_of_the_search_are_refused_for_other_methods(rule):
    with pytest.raises(InputError, match='concerns the method selective-search, not random'):
        Rules.of('random', **rule)
