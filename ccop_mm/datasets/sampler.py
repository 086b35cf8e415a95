"""Random data augmentation that depends only on seed, epoch and image."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from mmengine.dataset import DefaultSampler
from mmselfsup.registry import DATA_SAMPLERS


class SampleKey(int):
    """Index of a sample that carries everything its augmentation depends on, so that workers need no state.

    The class is an ``int`` because dataset wrappers compute the index into the wrapped dataset from it:
    ``RepeatDataset`` with ``%``, ``ConcatDataset`` with ``-``. The result is a key with the same ``sampler_index``, so
    that the repetitions of an image get different augmentations.

    Args:
        seed (int): Random seed of the run.
        epoch (int): Current epoch.
        index (int): Index into the dataset that is queried; the value as an ``int``.
        sampler_index (int, optional): Index into the sampler's dataset, which determines the random numbers. Equal to
            ``index`` by default.
    """

    seed: int
    epoch: int
    sampler_index: int

    def __new__(cls, seed: int, epoch: int, index: int, sampler_index: int | None = None) -> 'SampleKey':
        key = super().__new__(cls, index)
        key.seed, key.epoch = seed, epoch
        key.sampler_index = int(index) if sampler_index is None else sampler_index
        return key

    def __getnewargs__(self) -> tuple[int, int, int, int]:  # pickled to be sent to a worker
        return self.seed, self.epoch, int(self), self.sampler_index

    def __mod__(self, length: int) -> 'SampleKey':
        return SampleKey(self.seed, self.epoch, int(self) % length, self.sampler_index)

    def __sub__(self, first: int) -> 'SampleKey':
        return SampleKey(self.seed, self.epoch, int(self) - first, self.sampler_index)

    def __repr__(self) -> str:
        return f'SampleKey(seed={self.seed}, epoch={self.epoch}, index={int(self)}, sampler_index={self.sampler_index})'


@DATA_SAMPLERS.register_module()
class EpochIndexSampler(DefaultSampler):
    """mmengine's ``DefaultSampler`` that yields a :class:`SampleKey` instead of a plain index, in the same order.

    ``set_epoch`` does not reach persistent workers and their seed does not depend on the epoch, so each key contains
    the epoch. Sample i of epoch e is then identical for any number of workers and ranks, and after resuming.

    Args:
        dataset (Sized): Dataset that accepts a :class:`SampleKey`, such as :class:`ccop_mm.datasets.ProposalDataset`.
        shuffle (bool): Whether to shuffle the samples in every epoch.
        seed (int, optional): Random seed. By default the runner passes its own seed, except with
            ``randomness.diff_rank_seed``, where a reproducible run requires this argument.
        round_up (bool): Whether to repeat samples so that all ranks get the same number.
    """

    def __iter__(self) -> Iterator[SampleKey]:
        seed, epoch = self.seed, self.epoch
        return iter([SampleKey(seed, epoch, index) for index in super().__iter__()])


_BIT_GENERATOR = np.random.MT19937(0)


@contextlib.contextmanager
def seeded_from(key: SampleKey) -> Iterator[None]:
    """Seeds the global generators of Python, numpy and torch (CPU) from the key and restores their states on exit.

    Upstream transforms use all three generators. A data loader without workers shares them with the training process,
    whose random numbers must not depend on the augmentation.

    Args:
        key (SampleKey): Key of the sample.
    """
    states = random.getstate(), np.random.get_bit_generator(), torch.get_rng_state()
    words = np.random.SeedSequence((key.seed, key.epoch, key.sampler_index)).generate_state(6).tolist()
    # Exchanging numpy's bit generator is cheaper than copying its state twice. It discards the cached second value of a
    # pair of normal samples, on which no code here depends.
    np.random.set_bit_generator(_BIT_GENERATOR)
    random.seed(words[0] << 32 | words[1])
    np.random.seed(words[2:4])
    torch.default_generator.manual_seed(words[4] << 32 | words[5])
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_bit_generator(states[1])
        torch.set_rng_state(states[2])
