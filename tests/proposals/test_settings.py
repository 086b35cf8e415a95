"""Proposal settings and their ranges."""

import json
import math
import re

import pytest

from ccop_mm.proposals.settings import METHODS, ProposalSettings
from ccop_mm.utils.errors import InputError


def test_defaults_follow_the_paper():
    settings = ProposalSettings()
    assert (settings.method, settings.mode, settings.min_area, settings.max_aspect) == (
        'selective-search',
        'fast',
        144,
        3,
    )
    assert (settings.merge, settings.merge_iou, settings.max_boxes, settings.seed) == ('largest', 0.5, 100, 0)
    assert ProposalSettings.from_kwargs() == settings


def test_ground_truth_is_unfiltered_by_default():
    settings = ProposalSettings.from_kwargs('ground-truth', min_area=9)
    assert (settings.min_area, settings.max_aspect, settings.merge, settings.max_boxes) == (9, math.inf, 'none', 100)


@pytest.mark.parametrize('method', METHODS)
def test_json_round_trip(method):
    settings = ProposalSettings.from_kwargs(method, seed=3, max_boxes=7)
    values = json.loads(json.dumps(settings.to_json(), allow_nan=False))
    assert ('mode' in values) == ('max_side' in values) == (method == 'selective-search')
    assert ProposalSettings.from_json({**values, 'opencv': '4.12', 'format_version': 2}) == settings


def test_json_of_format_1_and_of_other_methods():
    first = {'mode': 'quality', 'min_area': 144.0, 'max_aspect': 3.0, 'merge_iou': 0.5, 'max_boxes': 100}
    assert ProposalSettings.from_json(first) == ProposalSettings(mode='quality', engine='opencv', max_side=0)
    for values in ({}, {'method': 'imported'}):
        with pytest.raises(KeyError):
            ProposalSettings.from_json(values)


def test_int_and_float_give_the_same_json():
    assert json.dumps(ProposalSettings(min_area=144).to_json()) == json.dumps(
        ProposalSettings(min_area=144.0).to_json()
    )


@pytest.mark.parametrize(
    ('name', 'value'),
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
def test_values_out_of_range_are_rejected(name, value):
    with pytest.raises(ValueError, match=rf'^{name} .*got {re.escape(str(value))}(\.0)?$') as caught:
        ProposalSettings(**{name: value})
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('setting', [{'mode': 'quality'}, {'max_side': 500}])
def test_settings_of_selective_search_are_rejected_for_other_methods(setting):
    with pytest.raises(ValueError, match=f'{next(iter(setting))} .*random'):
        ProposalSettings.from_kwargs('random', **setting)


def test_invalid_metadata_are_an_input_error():
    with pytest.raises(InputError, match='max_boxes .*0'):
        ProposalSettings.from_json({**ProposalSettings().to_json(), 'max_boxes': 0})
