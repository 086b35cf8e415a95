from collections import OrderedDict

import pytest
import torch
from torch import nn

from ccop_mm.models.momentum import MomentumEncoder
from ccop_mm.models.queue import FeatureQueue
from ccop_mm.utils.errors import InputError
from ccop_mm.weights.model_fit import check_finite, compare_with_model, non_finite_keys, strip_module_prefix


class Model(nn.Module):
    def __init__(self, width=4, length=6):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 1)
        self.bn = nn.BatchNorm2d(width)
        self.queue = FeatureQueue(length, width)
        self.encoder_k = MomentumEncoder(dict(conv=self.conv))
        self.register_buffer('table', torch.arange(5))


@pytest.fixture(params=['meta', 'cpu'])
def model(request):
    with torch.device(request.param):
        return Model()


@pytest.mark.parametrize(
    'change',
    [
        lambda state: None,
        lambda state: state.pop('bn.num_batches_tracked'),  # files older than torch 0.4.1
        lambda state: state.pop('table'),  # computed by the constructor
        lambda state: state.update({'queue.keys': torch.zeros(4, 9)}),  # another length
        lambda state: state.update({'data_preprocessor.mean': torch.zeros(3), 'ema_conv_weight': torch.zeros(1)}),
        lambda state: state.update({'bn.num_batches_tracked': torch.tensor([3])}),  # torch 0.3
        lambda state: state.update({'conv.weight': state['conv.weight'].half()}),
    ],
)
def test_checkpoints_that_load_completely_fit(model, change):
    state = Model().state_dict()
    change(state)
    assert compare_with_model(model, state)


@pytest.mark.parametrize(
    ('change', 'missing', 'unexpected', 'reshaped'),
    [
        (lambda state: state.pop('bn.running_var'), ['bn.running_var'], [], {}),
        (lambda state: state.pop('encoder_k._extra_state'), ['encoder_k._extra_state'], [], {}),
        (lambda state: state.update({'fc.weight': torch.zeros(2)}), [], ['fc.weight'], {}),
        (
            lambda state: state.update({'conv.weight': torch.zeros(4, 1, 1, 1), 'bn.bias': torch.zeros(())}),
            [],
            [],
            {'conv.weight': ('(4, 1, 1, 1)', '(4, 3, 1, 1)'), 'bn.bias': ('()', '(4)')},
        ),
        (
            lambda state: state.update({'queue.keys': torch.zeros(8, 6)}),
            [],
            [],
            {'queue.keys': ('(8, 6)', '(4, 6)')},
        ),
        (
            lambda state: state.update({'_orig_mod.conv.bias': state.pop('conv.bias')}),
            ['conv.bias'],
            ['_orig_mod.conv.bias'],
            {},
        ),
    ],
)
def test_differences(model, change, missing, unexpected, reshaped):
    state = Model().state_dict()
    change(state)
    fit = compare_with_model(model, state)
    assert not fit
    assert (list(fit.missing), list(fit.unexpected), fit.reshaped) == (missing, unexpected, reshaped)


def test_keys_that_a_module_converts_fit():
    class Renamed(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
            if local_metadata.get('version') == 1:
                state_dict[f'{prefix}weight'] = state_dict.pop(f'{prefix}kernel')
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    state = OrderedDict({'module.0.kernel': torch.zeros(2, 2), 'module.0.bias': torch.zeros(2)})
    state._metadata = {'0': dict(version=1)}
    with torch.device('meta'):
        model = nn.Sequential(Renamed(2, 2))
    assert compare_with_model(model, strip_module_prefix(state))
    assert set(state) == {'module.0.kernel', 'module.0.bias'}


def test_a_model_on_the_cpu_and_one_on_the_meta_device_are_compared_without_warnings(model, recwarn):
    compare_with_model(model, Model().state_dict())
    assert not recwarn.list


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize(
    'dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e5m2]
)
def test_one_value_that_is_not_finite_is_found(value, dtype):
    bad = torch.zeros(3, 5, dtype=dtype)
    bad[1, 2] = value
    state = {'a': torch.ones(2), 'b.weight': bad, 'steps': torch.tensor(7), 'c': bad.clone(), 'extra': 'text'}
    assert non_finite_keys(state) == ['b.weight', 'c']
    with pytest.raises(InputError, match=r'2 of 5 .*b\.weight'):
        check_finite(state)


def test_finite_values_pass():
    check_finite(
        {'largest': torch.tensor([torch.finfo(torch.float16).max], dtype=torch.float16), 'empty': torch.ones(0)}
    )


def test_a_nan_is_found_at_every_position():
    values = torch.ones(133)
    for position in range(len(values)):
        values[position] = float('nan')
        assert non_finite_keys({'a': values}) == ['a'], position
        values[position] = 1
    assert non_finite_keys({'a': values}) == []
