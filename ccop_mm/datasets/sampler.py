"""Random data augmentation that depends only on seed and position, and data loaders that start at any batch."""

import contextlib
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dataset import DefaultSampler
from mmselfsup.registry import DATA_SAMPLERS
from torch.utils.data import DataLoader, IterableDataset


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


class SeededBatch(list[Any]):
    """Indices of a batch; iterating over them seeds the global generators for each sample.

    A fetcher of torch computes ``[dataset[index] for index in batch]`` in a worker or in the training process, so that
    any map-style dataset is seeded without a change. The states of the generators are restored after each sample.

    Args:
        indices (Iterable): Indices into the dataset.
        entropy (tuple[int, ...]): What the random numbers depend on, besides the position in the batch.
    """

    def __init__(self, indices: Iterable[Any], entropy: tuple[int, ...]) -> None:
        super().__init__(indices)
        self.entropy = entropy

    def __iter__(self) -> Iterator[Any]:
        for position, index in enumerate(super().__iter__()):
            with _seeded((*self.entropy, position)):
                yield index

    def __reduce__(self) -> tuple[Any, ...]:  # pickled to be sent to a worker
        return SeededBatch, ([*super().__iter__()], self.entropy)


class ResumableBatchSampler:
    """Batch sampler that can skip batches without loading them, and whose samples can be reproduced after resuming.

    Batches are those of another batch sampler, in the same order. Batches of :class:`SampleKey` are passed on as they
    are, because their dataset seeds itself. All others become a :class:`SeededBatch`, whose random numbers depend on
    (seed, rank, iteration, position in the batch).

    Args:
        batch_sampler (Iterable[Sequence]): Batch sampler of a data loader.
        seed (int): Random seed of the run.
        rank (int): Rank of this process.

    Attributes:
        iteration (int): Training iteration of the next batch.
    """

    def __init__(self, batch_sampler: Iterable[Sequence[Any]], seed: int, rank: int) -> None:
        self.batch_sampler = batch_sampler
        self.iteration = 0
        self._entropy = (seed, rank)
        self._skipped: Iterator[Sequence[Any]] | None = None

    def __getattr__(self, name: str) -> Any:  # sampler, batch_size, drop_last
        if name == 'batch_sampler':  # while an instance is unpickled or copied
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)

    def __len__(self) -> int:
        return len(self.batch_sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Sequence[Any]]:
        batches, self._skipped = self._skipped or iter(self.batch_sampler), None
        for batch in batches:
            entropy = (*self._entropy, self.iteration)
            self.iteration += 1
            yield batch if isinstance(batch[0], SampleKey) else SeededBatch(batch, entropy)

    def skip(self, count: int) -> int:
        """Skips batches of the iterator that is created next. Only their indices are computed.

        Args:
            count (int): Number of batches. If a finite sampler has fewer, the next epochs are skipped, too.

        Returns:
            int: Number of complete epochs among the skipped batches.
        """
        epochs, batches = 0, iter(self.batch_sampler)
        for _ in range(count):
            try:
                next(batches)
            except StopIteration:
                epochs += 1
                if hasattr(self.sampler, 'set_epoch'):
                    self.sampler.set_epoch(epochs)
                batches = iter(self.batch_sampler)
                next(batches)
        self._skipped = batches
        return epochs


def make_resumable(loader: DataLoader, seed: int, rank: int) -> bool:
    """Replaces the batch sampler of a data loader by a :class:`ResumableBatchSampler`, before the first iteration.

    Args:
        loader (DataLoader): Data loader that has no iterator yet.
        seed (int): Random seed of the run.
        rank (int): Rank of this process.

    Returns:
        bool: Whether batches can be skipped; False for iterable datasets and data loaders without batches.
    """
    if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
        return False
    if not isinstance(loader.batch_sampler, ResumableBatchSampler):
        # DataLoader refuses the assignment because an existing iterator would not use the new sampler.
        object.__setattr__(loader, 'batch_sampler', ResumableBatchSampler(loader.batch_sampler, seed, rank))
    return True


_BIT_GENERATOR = np.random.MT19937(0)


def seeded_from(key: SampleKey) -> contextlib.AbstractContextManager[None]:
    """Seeds the global generators of Python, numpy and torch (CPU) from the key and restores their states on exit.

    Upstream transforms use all three generators. A data loader without workers shares them with the training process,
    whose random numbers must not depend on the augmentation.

    Args:
        key (SampleKey): Key of the sample.
    """
    return _seeded((key.seed, key.epoch, key.sampler_index))


@contextlib.contextmanager
def _seeded(entropy: tuple[int, ...]) -> Iterator[None]:
    states = random.getstate(), np.random.get_bit_generator(), torch.get_rng_state()
    words = np.random.SeedSequence(entropy).generate_state(6).tolist()
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
