import pytest
from mmengine.config import Config, ConfigDict

from ccop_mm.utils.run_config import expected_world_size, is_first_process, iterate_datasets


def test_datasets_inside_wrappers_have_their_keys_and_repeats():
    first, second, third = (dict(type='CocoDataset', ann_file=name) for name in 'abc')
    repeated = dict(type='RepeatDataset', times=3, dataset=dict(type='RepeatDataset', times=2, dataset=first))
    nested = dict(type='ConcatDataset', datasets=[repeated, second])
    found = list(iterate_datasets(ConfigDict(type='ConcatDataset', datasets=[nested, third]), 'x'))
    assert found == [
        ('x.datasets.0.datasets.0.dataset.dataset', first, 6),
        ('x.datasets.0.datasets.1', second, 1),
        ('x.datasets.1', third, 1),
    ]
    assert list(iterate_datasets(ConfigDict(first), 'x')) == [('x', first, 1)]


@pytest.mark.parametrize('dataset', [None, {}, object()])
def test_without_a_dataset_config_nothing_is_found(dataset):
    assert list(iterate_datasets(dataset, 'x')) == []


@pytest.mark.parametrize(
    'launcher, variable', [('pytorch', 'WORLD_SIZE'), ('slurm', 'SLURM_NTASKS'), ('mpi', 'OMPI_COMM_WORLD_SIZE')]
)
def test_world_size_is_known_before_the_process_group(monkeypatch, launcher, variable):
    monkeypatch.setenv(variable, '8')
    assert expected_world_size(Config(dict(launcher=launcher))) == 8
    assert expected_world_size(Config(dict(launcher='none'))) == expected_world_size(Config()) == 1
    monkeypatch.delenv(variable)
    assert expected_world_size(Config(dict(launcher=launcher))) is None


@pytest.mark.parametrize(
    'launcher, rank, local_rank',
    [
        ('pytorch', 'RANK', 'LOCAL_RANK'),
        ('slurm', 'SLURM_PROCID', 'SLURM_LOCALID'),
        ('mpi', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK'),
    ],
)
def test_first_process_of_a_run_and_of_a_machine(monkeypatch, launcher, rank, local_rank):
    cfg = Config(dict(launcher=launcher))
    for values, expected in ((('0', '0'), (True, True)), (('8', '0'), (False, True)), (('9', '1'), (False, False))):
        monkeypatch.setenv(rank, values[0])
        monkeypatch.setenv(local_rank, values[1])
        assert (is_first_process(cfg), is_first_process(cfg, of_machine=True)) == expected
    assert is_first_process(Config(dict(launcher='none'))) and is_first_process(Config())
