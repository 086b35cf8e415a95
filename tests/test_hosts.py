"""Each mend: the fault without it, its absence with it."""

import atexit
import functools
import http.server
import importlib.util
import os
import pickle
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import mmengine.logging
import numpy as np
import pytest
import torch
from mmcv.cnn import build_norm_layer
from mmengine import Config
from mmengine.dist import utils as dist_utils
from mmengine.evaluator import BaseMetric
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import CheckpointLoader, Runner, checkpoint, load_checkpoint
from torch import nn

from ccop_mm import hosts
from ccop_mm.errors import InputError

# An ops library that does not load, as beside a torch of another build; set before torchvision is imported.
WITHOUT_TORCHVISION_OPS = """
import torch
load = torch.ops.load_library
def refuse(path):
    if 'torchvision' in str(path):
        raise OSError('made for another torch')
    load(path)
torch.ops.load_library = refuse
"""


def test_import_after_hosts_and_failed_imports():
    code = """
import sys
import threading
import mmdet.models
try:
    import torchvision
except RuntimeError as error:
    assert 'torchvision::nms does not exist' in str(error)
else:
    raise SystemExit('torchvision needs no mend')
try:
    import mmselfsup
except AssertionError as error:
    assert 'MMCV==' in str(error)
else:
    raise SystemExit('mmselfsup needs no mend')
assert 'mmcls.apis' in sys.modules, 'the failed import left nothing behind'
import mmcv
version = mmcv.__version__

import ccop_mm
assert mmcv.__version__ == version
import torchvision.transforms, mmselfsup.datasets
import mmcls
assert mmcls.apis is sys.modules['mmcls.apis']
from mmdet.registry import MODELS
assert MODELS.get('mmselfsup.MoCo').__name__ == 'MoCo' and MODELS.get('ResNet').__module__.startswith('mmdet')
from ccop_mm import hosts
hosts.mend()  # a second time
"""
    command = [sys.executable, '-c', WITHOUT_TORCHVISION_OPS + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_drop_missing_locations():
    from mmselfsup.registry import LOOPS, MODELS

    LOOPS._locations, LOOPS._imported = ['mmselfsup.engine.runner'], False  # as mmselfsup has it
    with pytest.raises(ModuleNotFoundError, match='mmselfsup.engine.runner'):
        LOOPS.get('EpochBasedTrainLoop')
    hosts.drop_missing_locations()
    assert LOOPS.get('EpochBasedTrainLoop').__name__ == 'EpochBasedTrainLoop'
    assert MODELS._locations == ['mmselfsup.models']


@pytest.fixture
def no_safe_globals():
    """torch's allow-list, emptied for one test and put back."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(allowed)


@MODELS.register_module(force=True)
class ToyModel(BaseModel):
    """The least that a Runner trains: the loss is linear in ``weight``, and the norm layer takes part."""

    def __init__(self, norm_cfg):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.norm = build_norm_layer(norm_cfg, 2)[1]

    def forward(self, inputs, mode):
        if mode == 'predict':
            return list(inputs)
        return {'loss': (self.weight * inputs.flatten(1)).sum() + 0 * self.norm(inputs).sum()}


@DATASETS.register_module(force=True)
class ToyDataset(torch.utils.data.Dataset):
    """Sample i is a (2, 1, 1) image of i's."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {'inputs': torch.full((2, 1, 1), float(index))}


@METRICS.register_module(force=True)
class ToyMetric(BaseMetric):
    """How many samples all processes have seen together."""

    def process(self, data_batch, data_samples):
        self.results += [1] * len(data_samples)

    def compute_metrics(self, results):
        return {'count': np.float64(len(results))}


def toy_config(work_dir, **changes):
    """Two epochs with everything that lands in a checkpoint: history, schedules, validation."""
    loader = {
        'dataset': {'type': 'ToyDataset'},
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'collate_fn': {'type': 'default_collate'},
        'batch_size': 2,
    }
    cfg = {
        'work_dir': str(work_dir),
        'model': {'type': 'ToyModel', 'norm_cfg': {'type': 'SyncBN'}},
        'train_dataloader': loader,
        'train_cfg': {'by_epoch': True, 'max_epochs': 2},
        'val_dataloader': loader,
        'val_cfg': {},
        'val_evaluator': {'type': 'ToyMetric', 'prefix': 'toy'},
        'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.1, 'momentum': 0.0}},
        'param_scheduler': [
            {'type': 'LinearLR', 'start_factor': 1},
            {'type': 'MultiStepLR', 'milestones': [9]},
        ],
        'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'interval': 1}},
        'env_cfg': {'dist_cfg': {'backend': 'nccl'}},
        **changes,
    }
    return Config(cfg)


def test_own_checkpoint_loads_safely(tmp_path, no_safe_globals):
    runner = Runner.from_cfg(toy_config(tmp_path, experiment_name='toy'))
    runner.message_hub.update_info_dict({'best': np.float32(0.5), 'counts': np.arange(3), 'flag': np.bool_(True)})
    runner.train()
    path = str(tmp_path / 'epoch_2.pth')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    hosts.allow_checkpoint_types()
    with torch.serialization.safe_globals([HistoryBuffer]):
        pass  # forbids HistoryBuffer on leaving
    hub = hosts._load_weights_only(path)['message_hub']
    history, expected = hub['log_scalars']['train/loss'], runner.message_hub.get_scalar('train/loss')
    np.testing.assert_array_equal(history.data, expected.data)
    assert history.statistics('mean') == expected.mean()
    assert hub['runtime_info']['best'] == np.float32(0.5) and hub['runtime_info']['counts'].tolist() == [0, 1, 2]
    resumed = Runner.from_cfg(toy_config(tmp_path, experiment_name='resumed', resume=True))
    assert resumed.train() is not None and resumed.epoch == 2


@pytest.mark.parametrize('module', [b'numpy.core.multiarray', b'numpy._core.multiarray'])
def test_checkpoint_of_either_numpy_loads(tmp_path, module):
    torch.save({'history': HistoryBuffer([1.5, 2.5], [1, 1]), 'scalar': np.float64(3)}, tmp_path / 'here.pth')
    here = np.float64(0).__reduce__()[0].__module__.encode()
    with zipfile.ZipFile(tmp_path / 'here.pth') as source, zipfile.ZipFile(tmp_path / 'there.pth', 'w') as target:
        assert any(here in source.read(name) for name in source.namelist())
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(here, module))
    loaded = torch.load(tmp_path / 'there.pth', weights_only=True)
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
def test_getattr_of_a_checkpoint_is_restricted(owner, name):
    assert hosts._statistics_method(HistoryBuffer, 'mean') is HistoryBuffer.mean
    with pytest.raises(pickle.UnpicklingError):
        hosts._statistics_method(owner, name)


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return exec, (f'open({str(self.marker)!r}, "w").close()',)


class PlantedGetattr:
    """Reaches for a function's globals by ``getattr`` when it is unpickled."""

    def __reduce__(self):
        return getattr, (HistoryBuffer.__init__, '__globals__')


def test_planted_code_is_refused(tmp_path):
    marker, path = tmp_path / 'ran', str(tmp_path / 'planted.pth')
    torch.save({'state_dict': {}, 'meta': Planted(marker)}, path)
    for load in (
        lambda: checkpoint.CheckpointLoader.load_checkpoint(path, map_location='cpu'),
        lambda: load_checkpoint(nn.Linear(1, 1), path),
        lambda: torch.load(path),
    ):
        with pytest.raises(pickle.UnpicklingError):
            load()
    torch.save({'state_dict': {}, 'meta': PlantedGetattr()}, path)
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.CheckpointLoader.load_checkpoint(path)
    assert not marker.exists()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder, and its address on this machine alone."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    folder = tmp_path / 'served'
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield folder, f'http://127.0.0.1:{httpd.server_port}'
        httpd.shutdown()


def test_planted_code_is_refused_from_an_address(server, tmp_path):
    folder, address = server
    marker = tmp_path / 'marker'

    class Payload:
        def __reduce__(self):
            return open, (str(marker), 'w')

    torch.save(dict(state_dict=Payload()), folder / 'epoch_1.pth')
    with pytest.raises(pickle.UnpicklingError):
        CheckpointLoader.load_checkpoint(f'{address}/epoch_1.pth', map_location='cpu')
    assert not marker.exists()


def test_files_of_one_name_at_two_addresses(server):
    folder, address = server
    for run in range(2):
        (folder / str(run)).mkdir()
        torch.save(dict(state_dict=dict(weight=torch.full((2,), run))), folder / str(run) / 'epoch_1.pth')
    for run in range(2):
        loaded = CheckpointLoader.load_checkpoint(f'{address}/{run}/epoch_1.pth', map_location='cpu')
        assert loaded['state_dict']['weight'].tolist() == [run, run]


def test_planted_code_runs_without_the_mend(tmp_path, no_safe_globals):
    if not hasattr(checkpoint, '_safe_torch_load'):
        pytest.skip('this mmengine has no unsafe fallback')
    spec = importlib.util.spec_from_file_location('unmended_checkpoint', checkpoint.__file__)
    unmended = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unmended)
    torch.save(Planted(tmp_path / 'ran'), tmp_path / 'planted.pth')
    unmended._safe_torch_load(tmp_path / 'planted.pth')
    assert (tmp_path / 'ran').exists()


def launch_variables(rank, world_size, port):
    """What a launcher hands to a process, torchrun's and slurm's alike."""
    torchrun = {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': world_size}
    slurm = {'SLURM_PROCID': rank, 'SLURM_NTASKS': world_size, 'SLURM_NODELIST': 'localhost', 'SLURM_LOCALID': rank}
    variables = {**torchrun, **slurm, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    return {name: str(value) for name, value in variables.items()}


@pytest.fixture
def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


@pytest.fixture
def one_process(monkeypatch, free_port):
    """The environment of a launcher that started one process, without a GPU."""
    for name, value in launch_variables(0, 1, free_port).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(hosts, '_on_cpu', lambda: True)

    def no_gpu(device):
        raise RuntimeError('no GPU')

    monkeypatch.setattr(torch.cuda, 'set_device', no_gpu)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    assert torch.cuda.set_device is no_gpu


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm'])
def test_initialize_on_cpu(one_process, launcher):
    with pytest.raises(RuntimeError, match='no GPU'):
        getattr(dist_utils, f'_init_dist_{launcher}').__wrapped__('gloo')
    hosts.initialize_on_cpu()  # a second time: still one layer
    assert not hasattr(getattr(dist_utils, f'_init_dist_{launcher}').__wrapped__, '__wrapped__')
    dist_utils.init_dist(launcher, backend='nccl', timeout=60)
    assert torch.distributed.get_backend() == 'gloo'


def test_runner_with_two_processes_on_cpu(tmp_path, free_port):
    command = [sys.executable, __file__, str(tmp_path)]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **launch_variables(rank, 2, free_port), 'CUDA_VISIBLE_DEVICES': ''},
            stdout=(tmp_path / f'{rank}.log').open('w'),
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    codes = [process.wait(timeout=120) for process in processes]
    logs = [(tmp_path / f'{rank}.log').read_text() for rank in range(2)]
    assert codes == [0, 0], '\n'.join(logs)
    # The mean over ranks of the summed samples, 0 + 2 and 1 + 3, is 3: two steps of 0.1 lead from 1 to 0.4.
    weights = torch.load(tmp_path / 'mmdet' / 'epoch_2.pth', weights_only=True)['state_dict']['weight']
    torch.testing.assert_close(weights, torch.full((2,), 0.4))
    assert logs[0].count('SyncBN became BN (1 x)') == 2 and 'toy/count: 4.0' in logs[0]
    assert 'gloo threads at exit: 0' in logs[0]


def gloo_threads():
    """How many threads of this process belong to gloo, by their names (Linux)."""
    return sum('gloo' in name.read_text() for name in Path('/proc/self/task').glob('*/comm'))


def run_two_scopes(work_dir):
    """What each of the two processes does."""
    # Registered before the mend's handler, this one runs after it.
    atexit.register(lambda: print(f'gloo threads at exit: {gloo_threads()}'))
    for scope in ('mmselfsup', 'mmdet'):
        cfg = toy_config(f'{work_dir}/{scope}', default_scope=scope, launcher='pytorch', experiment_name=scope)
        runner = Runner.from_cfg(hosts.prepare_config(cfg))
        runner.train()
        assert type(runner.model).__name__ == 'MMDistributedDataParallel' and dist_utils.get_backend() == 'gloo'


def test_names_travel_as_json(tmp_path):
    from mmdet.utils import dist_utils as mmdet_dist

    names = ['backbone.bn.weight', 'neck.ü']
    assert mmdet_dist.tensor2obj(mmdet_dist.obj2tensor(names)) == names
    planted = torch.tensor(list(pickle.dumps(Planted(tmp_path / 'ran'))), dtype=torch.uint8)
    with pytest.raises(ValueError):
        mmdet_dist.tensor2obj(planted)
    assert not (tmp_path / 'ran').exists()


def training_config(**changes):
    cfg = Config(
        {
            'model': {
                'type': 'MaskRCNN',
                'backbone': {'type': 'mmdet.ResNet', 'norm_cfg': {'type': 'SyncBN', 'requires_grad': True}},
                'heads': [{'norm_cfg': {'type': 'mmdet.SyncBN'}}, ({'norm': {'type': 'MMSyncBN', 'group': 2}},)],
                'neck': {'type': 'FPN', 'norm_cfg': {'type': 'GN', 'num_groups': 4}},
            },
            'optim_wrapper': {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.1}},
            'env_cfg': {'dist_cfg': {'backend': 'nccl', 'timeout': 60}},
            'launcher': 'pytorch',
        }
    )
    cfg.merge_from_dict(changes)
    return cfg


def test_prepare_config_without_gpu(monkeypatch):
    lines = []
    monkeypatch.setattr(mmengine.logging, 'print_log', lambda line, logger: lines.append(line))
    monkeypatch.setattr(hosts, '_on_cpu', lambda: True)
    cfg = training_config(sync_bn='torch', find_unused_parameters=True, model_wrapper_cfg={'static_graph': True})
    assert hosts.prepare_config(cfg) is cfg
    assert cfg.model.backbone.norm_cfg == {'type': 'BN', 'requires_grad': True}
    assert cfg.model.heads[0].norm_cfg == {'type': 'mmdet.BN'} and cfg.model.heads[1][0].norm == {'type': 'BN'}
    assert cfg.model.neck.norm_cfg == {'type': 'GN', 'num_groups': 4}
    assert cfg.sync_bn is None
    assert cfg.env_cfg.dist_cfg == {'backend': 'gloo', 'timeout': 60}
    assert cfg.model_wrapper_cfg == {
        'type': 'MMDistributedDataParallel',
        'device_ids': None,
        'broadcast_buffers': False,
        'find_unused_parameters': True,
        'static_graph': True,
    }
    before = cfg.pretty_text
    assert hosts.prepare_config(cfg).pretty_text == before
    assert len(lines) == 1 and 'SyncBN became BN (4 x)' in lines[0]


def test_prepare_config_with_one_process(monkeypatch):
    monkeypatch.setattr(hosts, '_on_cpu', lambda: True)
    assert 'model_wrapper_cfg' not in hosts.prepare_config(training_config(launcher='none'))
    hosts.prepare_config(Config({'model': {'type': 'MoCo'}}))  # a config without the usual parts


def test_prepare_config_with_gpu(monkeypatch):
    monkeypatch.setattr(hosts, '_on_cpu', lambda: False)
    cfg = training_config()
    assert hosts.prepare_config(cfg).pretty_text == training_config().pretty_text


def test_prepare_config_refuses_amp_without_gpu(monkeypatch):
    monkeypatch.setattr(hosts, '_on_cpu', lambda: True)
    with pytest.raises(InputError, match='drop --amp'):
        hosts.prepare_config(training_config(**{'optim_wrapper.type': 'AmpOptimWrapper'}))


if __name__ == '__main__':
    run_two_scopes(sys.argv[1])
