"""Loading of checkpoints with ``weights_only=True``."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from planted_code import Planted, PlantedGetattr
from torch import nn
from toy_training import toy_config

from ccop_mm.compat.torch import allow_checkpoint_types, load_weights_only, statistics_method


def test_checkpoint_of_a_run_loads_and_resumes(tmp_path, no_safe_globals):
    runner = Runner.from_cfg(toy_config(tmp_path, experiment_name='toy'))
    runner.message_hub.update_info_dict({'best': np.float32(0.5), 'counts': np.arange(3), 'flag': np.bool_(True)})
    runner.train()
    path = str(tmp_path / 'epoch_2.pth')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    allow_checkpoint_types()
    with torch.serialization.safe_globals([HistoryBuffer]):
        pass  # removes HistoryBuffer from the allow-list on exit
    hub = load_weights_only(path)['message_hub']
    history, expected = hub['log_scalars']['train/loss'], runner.message_hub.get_scalar('train/loss')
    np.testing.assert_array_equal(history.data, expected.data)
    assert history.statistics('mean') == expected.mean()
    assert hub['runtime_info']['best'] == np.float32(0.5) and hub['runtime_info']['counts'].tolist() == [0, 1, 2]
    resumed = Runner.from_cfg(toy_config(tmp_path, experiment_name='resumed', resume=True))
    assert resumed.train() is not None and resumed.epoch == 2


@pytest.mark.parametrize('module', [b'numpy.core.multiarray', b'numpy._core.multiarray'])
def test_checkpoints_of_numpy_1_and_numpy_2_load(tmp_path, module):
    torch.save({'history': HistoryBuffer([1.5, 2.5], [1, 1]), 'scalar': np.float64(3)}, tmp_path / 'installed.pth')
    installed = np.float64(0).__reduce__()[0].__module__.encode()
    with zipfile.ZipFile(tmp_path / 'installed.pth') as source, zipfile.ZipFile(tmp_path / 'other.pth', 'w') as target:
        assert any(installed in source.read(name) for name in source.namelist())
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(installed, module))
    loaded = torch.load(tmp_path / 'other.pth', weights_only=True)
    assert loaded['history'].mean() == 2.0 and loaded['scalar'] == 3


@pytest.mark.parametrize(
    ('owner', 'name'),
    [
        (HistoryBuffer, '__init__'),
        (HistoryBuffer, 'update'),
        (HistoryBuffer.mean, '__globals__'),
        (os, 'system'),
        ([], 'max'),
    ],
)
def test_getattr_in_a_checkpoint_is_restricted(owner, name):
    assert statistics_method(HistoryBuffer, 'mean') is HistoryBuffer.mean
    with pytest.raises(pickle.UnpicklingError, match=name):
        statistics_method(owner, name)


def test_code_in_a_file_is_not_executed(tmp_path):
    marker, path = tmp_path / 'executed', str(tmp_path / 'planted.pth')
    torch.save({'state_dict': {}, 'meta': Planted(marker)}, path)
    for load in (
        lambda: CheckpointLoader.load_checkpoint(path, map_location='cpu'),
        lambda: load_checkpoint(nn.Linear(1, 1), path),
        lambda: torch.load(path),
    ):
        with pytest.raises(pickle.UnpicklingError):
            load()
    torch.save({'state_dict': {}, 'meta': PlantedGetattr()}, path)
    with pytest.raises(pickle.UnpicklingError):
        CheckpointLoader.load_checkpoint(path)
    assert not marker.exists()
