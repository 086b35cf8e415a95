"""Data draws that depend on the seed, the epoch and the photo, and on nothing else."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from mmengine.dataset import DefaultSampler
from mmselfsup.registry import DATA_SAMPLERS


class SampleKey(int):
    """The number of a sample that also tells what a loader's worker has to know to draw it: a worker keeps no state.

    It is an ``int``, so that data sets which look a sample up in another one take it: what ``RepeatDataset`` (``%``)
    and ``ConcatDataset`` (``-``) make of it is a key with the same ``draw``. So the repeats of a photo are drawn anew.

    Args:
        seed (int): Of the run.
        epoch (int): Of the run.
        index (int): Number of the sample, as an ``int`` is; in the data set that is asked for it.
        draw (int, optional): Its number in the sampler's data set, from which it is drawn; ``index`` by default.
    """

    def __new__(cls, seed: int, epoch: int, index: int, draw: int | None = None) -> 'SampleKey':
        key = super().__new__(cls, index)
        key.seed, key.epoch, key.draw = seed, epoch, int(index) if draw is None else draw
        return key

    def __getnewargs__(self) -> tuple[int, int, int, int]:  # for pickle, on the way to a worker
        return self.seed, self.epoch, int(self), self.draw

    def __mod__(self, length: int) -> 'SampleKey':
        return SampleKey(self.seed, self.epoch, int(self) % length, self.draw)

    def __sub__(self, first: int) -> 'SampleKey':
        return SampleKey(self.seed, self.epoch, int(self) - first, self.draw)

    def __repr__(self) -> str:
        return f'SampleKey(seed={self.seed}, epoch={self.epoch}, index={int(self)}, draw={self.draw})'


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


_GENERATOR = np.random.MT19937(0)


@contextlib.contextmanager
def drawing_from(key: SampleKey) -> Iterator[None]:
    """Python's, numpy's and torch's (CPU) global generators draw from the key, and go on after it where they were.

    The transforms of the host libraries draw from all three. A loader without workers shares them with the training,
    whose draws must not depend on that.
    """
    states = random.getstate(), np.random.get_bit_generator(), torch.get_rng_state()
    words = np.random.SeedSequence((key.seed, key.epoch, key.draw)).generate_state(6).tolist()
    # Another generator in the place of numpy's: to copy its state out and in takes ten times as long. (numpy forgets
    # the second of a pair of normal numbers by that; nothing here relies on one.)
    np.random.set_bit_generator(_GENERATOR)
    random.seed(words[0] << 32 | words[1])
    np.random.seed(words[2:4])
    torch.default_generator.manual_seed(words[4] << 32 | words[5])
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_bit_generator(states[1])
        torch.set_rng_state(states[2])
