"""Questions about the config of a run that several checks have in common."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_world_size, is_distributed

# Environment variables of the launchers: number of processes, rank, and rank on the machine.
_NUM_PROCESSES = {'pytorch': 'WORLD_SIZE', 'slurm': 'SLURM_NTASKS', 'mpi': 'OMPI_COMM_WORLD_SIZE'}
_RANK = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}
_LOCAL_RANK = {'pytorch': 'LOCAL_RANK', 'slurm': 'SLURM_LOCALID', 'mpi': 'OMPI_COMM_WORLD_LOCAL_RANK'}


def expected_world_size(cfg: Config) -> int | None:
    """Returns the number of processes of a run, also before its process group exists; None if it is not known."""
    if is_distributed():
        return get_world_size()
    launcher = cfg.get('launcher', 'none')
    value = '1' if launcher == 'none' else os.environ.get(_NUM_PROCESSES.get(launcher, ''), '')
    return int(value) if value.isdecimal() else None


def is_first_process(cfg: Config, of_machine: bool = False) -> bool:
    """Returns whether this process has rank 0, also before the process group exists.

    Args:
        cfg (Config): Config of the run.
        of_machine (bool): Whether the first process of each machine counts.
    """
    variables = _LOCAL_RANK if of_machine else _RANK
    return os.environ.get(variables.get(cfg.get('launcher', 'none'), ''), '0') == '0'


def iterate_datasets(dataset: Any, key: str, repeats: int = 1) -> Iterator[tuple[str, Any, int]]:
    """Yields each dataset inside wrappers such as ``RepeatDataset`` and ``ConcatDataset``.

    Args:
        dataset (Mapping): Config of a dataset. Anything else, such as a dataset that was built before, is skipped.
        key (str): Config key of ``dataset``.
        repeats (int): How often outer wrappers repeat the dataset.

    Yields:
        tuple[str, Mapping, int]: Config key, config and number of repeats.
    """
    if not isinstance(dataset, Mapping):
        return
    if 'dataset' in dataset:
        yield from iterate_datasets(dataset['dataset'], f'{key}.dataset', repeats * (dataset.get('times', 1) or 1))
    elif 'datasets' in dataset:
        for number, inner in enumerate(dataset['datasets']):
            yield from iterate_datasets(inner, f'{key}.datasets.{number}', repeats)
    elif dataset:
        yield key, dataset, repeats
