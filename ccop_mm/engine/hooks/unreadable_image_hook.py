"""Limits the number of unreadable images of a detector's datasets."""

from collections.abc import Iterator
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmselfsup.registry import HOOKS

from ccop_mm.datasets.load_readable_image import LoadReadableImage
from ccop_mm.datasets.unreadable_images import UnreadableImageTracker


@HOOKS.register_module()
class UnreadableImageHook(Hook):
    """Stops a detector's training or test if too many images are unreadable, as ``ProposalDataset`` does.

    :class:`ccop_mm.datasets.LoadReadableImage` replaces unreadable images; this hook lets it count them for each
    dataset, across the workers of the data loader.

    Args:
        max_unreadable_ratio (float): See :class:`ccop_mm.datasets.unreadable_images.UnreadableImageTracker`.
    """

    def __init__(self, max_unreadable_ratio: float = 0.01) -> None:
        if not 0 <= max_unreadable_ratio <= 1:
            raise ValueError(f'max_unreadable_ratio must be in [0, 1], got {max_unreadable_ratio}')
        self.max_unreadable_ratio = max_unreadable_ratio

    def before_train(self, runner: Runner) -> None:
        """Counts the images of the training datasets."""
        self._track(runner.train_dataloader)

    def before_val(self, runner: Runner) -> None:
        """Counts the images of the validation datasets."""
        self._track(runner.val_dataloader)

    def before_test(self, runner: Runner) -> None:
        """Counts the images of the test datasets."""
        self._track(runner.test_dataloader)

    def _track(self, loader: Any) -> None:
        for dataset in _inner_datasets(loader.dataset):
            for transform in getattr(getattr(dataset, 'pipeline', None), 'transforms', ()):
                if isinstance(transform, LoadReadableImage) and transform.tracker is None:
                    transform.tracker = UnreadableImageTracker(len(dataset), self.max_unreadable_ratio)


def _inner_datasets(dataset: Any) -> Iterator[Any]:
    """Yields the datasets inside ``RepeatDataset``, ``ConcatDataset`` and similar wrappers."""
    if hasattr(dataset, 'datasets'):
        for part in dataset.datasets:
            yield from _inner_datasets(part)
    elif hasattr(dataset, 'dataset'):
        yield from _inner_datasets(dataset.dataset)
    else:
        yield dataset
