"""Patches of mmengine's checkpoint loader."""

import functools
import http.server
import importlib.util
import pickle
import threading

import pytest
import torch
from mmengine.runner import CheckpointLoader, Runner, checkpoint
from planted_code import Planted
from toy_training import toy_config


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves a folder over HTTP on this machine; returns the folder and its URL."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    folder = tmp_path / 'served'
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield folder, f'http://127.0.0.1:{httpd.server_port}'
        httpd.shutdown()


def test_code_in_a_download_is_not_executed(server, tmp_path):
    folder, address = server
    torch.save(dict(state_dict=Planted(tmp_path / 'executed')), folder / 'epoch_1.pth')
    with pytest.raises(pickle.UnpicklingError):
        CheckpointLoader.load_checkpoint(f'{address}/epoch_1.pth', map_location='cpu')
    assert not (tmp_path / 'executed').exists()


def test_downloads_with_the_same_file_name_are_kept_apart(server):
    folder, address = server
    for run in range(2):
        (folder / str(run)).mkdir()
        torch.save(dict(state_dict=dict(weight=torch.full((2,), run))), folder / str(run) / 'epoch_1.pth')
    for run in range(2):
        loaded = CheckpointLoader.load_checkpoint(f'{address}/{run}/epoch_1.pth', map_location='cpu')
        assert loaded['state_dict']['weight'].tolist() == [run, run]


def test_unpatched_fallback_executes_code(tmp_path, no_safe_globals):
    """Shows that ``remove_unsafe_fallback`` is still needed."""
    if not hasattr(checkpoint, '_safe_torch_load'):
        pytest.skip('the installed mmengine has no unsafe fallback')
    spec = importlib.util.spec_from_file_location('unpatched_checkpoint', checkpoint.__file__)
    unpatched = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpatched)
    torch.save(Planted(tmp_path / 'executed'), tmp_path / 'planted.pth')
    unpatched._safe_torch_load(tmp_path / 'planted.pth')
    assert (tmp_path / 'executed').exists()


def test_config_text_in_a_checkpoint_is_not_executed(tmp_path):
    Runner.from_cfg(toy_config(tmp_path, experiment_name='planted')).train()
    marker, path = tmp_path / 'executed', tmp_path / 'epoch_1.pth'
    content = torch.load(path, weights_only=True)
    content['meta']['config'] = f'open({str(marker)!r}, "w")'
    torch.save(content, path)
    resumed = Runner.from_cfg(toy_config(tmp_path, experiment_name='resumed'))
    resumed.resume(str(path))
    assert resumed.epoch == 1 and not marker.exists()
    unpatched = Runner.from_cfg(toy_config(tmp_path, experiment_name='unpatched'))
    Runner.resume.__wrapped__(unpatched, str(path))
    assert marker.exists(), 'the installed mmengine no longer executes the text: the patch can be removed'
