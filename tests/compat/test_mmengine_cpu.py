"""Distributed training on the CPU."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.dist import utils as dist_utils

from ccop_mm.compat import mmengine as patches

HELPERS = Path(__file__).resolve().parents[1] / 'helpers'
SCRIPT = Path(__file__).with_name('train_two_scopes.py')


def launch_variables(rank, world_size, port):
    """Returns the environment variables that torchrun and slurm set for a process."""
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
def single_process(monkeypatch, free_port):
    """Simulates a launcher that started one process on a machine without a GPU."""
    for name, value in launch_variables(0, 1, free_port).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(patches, 'runs_on_cpu', lambda: True)

    def no_gpu(device):
        raise RuntimeError('no GPU')

    monkeypatch.setattr(torch.cuda, 'set_device', no_gpu)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    assert torch.cuda.set_device is no_gpu


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm'])
def test_initialize_on_cpu(single_process, launcher):
    with pytest.raises(RuntimeError, match='no GPU'):
        getattr(dist_utils, f'_init_dist_{launcher}').__wrapped__('gloo')
    patches.initialize_on_cpu()  # a second time: must not wrap again
    assert not hasattr(getattr(dist_utils, f'_init_dist_{launcher}').__wrapped__, '__wrapped__')
    dist_utils.init_dist(launcher, backend='nccl', timeout=60)
    assert torch.distributed.get_backend() == 'gloo'


@pytest.mark.slow
def test_runner_with_two_processes(tmp_path, free_port):
    path = os.pathsep.join([str(HELPERS), *filter(None, [os.environ.get('PYTHONPATH')])])
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path)],
            env={
                **os.environ,
                **launch_variables(rank, 2, free_port),
                'CUDA_VISIBLE_DEVICES': '',
                'PYTHONPATH': path,
            },
            stdout=(tmp_path / f'{rank}.log').open('w'),
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    codes = [process.wait(timeout=120) for process in processes]
    logs = [(tmp_path / f'{rank}.log').read_text() for rank in range(2)]
    assert codes == [0, 0], '\n'.join(logs)
    # The mean over ranks of the summed samples, 0 + 2 and 1 + 3, is 3. Two steps with lr 0.1 lead from 1 to 0.4.
    weights = torch.load(tmp_path / 'mmdet' / 'epoch_2.pth', weights_only=True)['state_dict']['weight']
    torch.testing.assert_close(weights, torch.full((2,), 0.4))
    assert logs[0].count('SyncBN is replaced by BN in 1 places') == 2 and 'toy/count: 4.0' in logs[0]
    assert 'gloo threads at exit: 0' in logs[0]
