"""Data draws that depend on the seed, the epoch and the photo, and on nothing else."""

import contextlib
import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from mmengine.dataset import DefaultSampler
from mmselfsup.registry import DATA_SAMPLERS


class SampleKey(NamedTuple):
    """What a loader's worker has to know to draw a sample: it keeps no state."""

    seed: int
    epoch: int
    index: int


@DATA_SAMPLERS.register_module()
class EpochIndexSampler(DefaultSampler):
    """mmengine's ``DefaultSampler``, in the same order, for a dataset that takes a :class:`SampleKey`.

    ``set_epoch`` does not reach workers that live on, and their seed holds no epoch, so each sample brings its own.
    Then sample i of epoch e is the same for any number of workers and ranks, and after a resume.

    Args:
        dataset (Sized): Such as :class:`ccop_mm.datasets.ProposalDataset`.
        shuffle (bool): Whether every epoch has an order of its own.
        seed (int, optional): The runner gives its own. With ``randomness.diff_rank_seed`` it gives none: set one here
            for runs that can be repeated.
        round_up (bool): Whether all ranks get the same number of samples, by repeating some.
    """

    def __iter__(self) -> Iterator[SampleKey]:
        seed, epoch = self.seed, self.epoch
        return iter([SampleKey(seed, epoch, index) for index in super().__iter__()])


@contextlib.contextmanager
def drawing_from(key: SampleKey) -> Iterator[None]:
    """Python's, numpy's and torch's (CPU) global generators draw from ``key``, and go on after it where they were.

    The transforms of the host libraries draw from all three. A loader without workers shares them with the training,
    whose draws must not depend on that.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(key).generate_state(6).tolist()
    random.seed(words[0] << 32 | words[1])
    np.random.seed(words[2:4])
    torch.default_generator.manual_seed(words[4] << 32 | words[5])
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
