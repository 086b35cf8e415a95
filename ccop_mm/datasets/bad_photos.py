"""Photos that cannot be read: named once, counted over all workers of a loader, and an end if they are too many."""

import logging

import torch
from mmengine.dist import get_world_size
from mmengine.logging import print_log

from ccop_mm.errors import InputError

UNTRIED, GOOD, BAD = range(3)


class BadPhotoRecord:
    """One mark for each photo of a data set, in memory that a loader's workers share with the training process.

    Args:
        num_photos (int): Of the data set.
        max_share (float): The run ends when more than this share of the photos tried so far are bad. It takes at least
            two of them, and so many as this share is of one rank's part of the data set, for the first few say little.
    """

    def __init__(self, num_photos: int, max_share: float) -> None:
        self.max_share = max_share
        self._marks = torch.full((num_photos,), UNTRIED, dtype=torch.uint8).share_memory_()

    @property
    def num_bad(self) -> int:
        """Bad photos met so far by this rank."""
        return int((self._marks == BAD).sum())

    def good(self, index: int) -> None:
        """Notes a photo that was read."""
        self._marks.numpy()[index] = GOOD

    def bad(self, index: int, path: str, reason: Exception) -> None:
        """Notes a photo that could not be read, and names it in the log unless that was done.

        Raises:
            InputError: They are too many.
        """
        marks = self._marks.numpy()
        known = marks[index] == BAD
        marks[index] = BAD
        bad, tried = self.num_bad, int((marks != UNTRIED).sum())
        if not known:
            print_log(f'another photo replaces {path} (bad ones so far: {bad}): {reason}', 'current', logging.WARNING)
        enough = max(1, self.max_share * len(marks) / get_world_size())
        if bad == len(marks) or (bad > enough and bad > self.max_share * tried):
            raise InputError(
                f'{bad} of the {tried} photos tried so far cannot be read; the last, {path}: {reason}; mend or remove '
                f'them, or raise max_bad_share ({self.max_share:g} now) of the data set'
            ) from reason
