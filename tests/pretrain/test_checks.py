"""Checks that precede the search for proposals."""

import pytest

from ccop_mm.pretrain.checks import check_replaced_options
from ccop_mm.utils.errors import InputError


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({'train_cfg.max_epochs': 7}, '--epochs'),
        ({'train_cfg': {'type': 'IterBasedTrainLoop', 'max_iters': 7}}, '--epochs'),
        ({'randomness.seed': 1, 'train_dataloader': {'batch_size': 7}}, '--batch-size'),
        ({'work_dir': 'a'}, '--out'),
    ],
)
def test_options_that_another_argument_replaces(options, named):
    with pytest.raises(InputError, match=named) as caught:
        check_replaced_options(options)
    assert '\n' not in str(caught.value)


def test_other_options():
    check_replaced_options({'train_cfg.val_interval': 7, 'train_dataloader.num_workers': 0, 'model': {'work_dir': 1}})
