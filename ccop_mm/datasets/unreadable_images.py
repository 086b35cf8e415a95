"""Tracks unreadable images across data loader workers and stops the run if there are too many."""

import logging

import torch
from mmengine.dist import get_world_size
from mmengine.logging import print_log

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import single_line

UNSEEN, READABLE, UNREADABLE = range(3)


class UnreadableImageTracker:
    """Status of each image of a dataset, in memory that data loader workers share with the training process.

    Args:
        num_images (int): Number of images in the dataset.
        max_ratio (float): The run is stopped when the ratio of unreadable images among those seen so far exceeds this
            value. Because the first few images are not representative, it continues while the number of unreadable
            images is at most 1 or at most this ratio of the images of one rank.
    """

    def __init__(self, num_images: int, max_ratio: float) -> None:
        self.max_ratio = max_ratio
        self._status = torch.full((num_images,), UNSEEN, dtype=torch.uint8).share_memory_()

    @property
    def num_unreadable(self) -> int:
        """Number of unreadable images seen by this rank."""
        return int((self._status == UNREADABLE).sum())

    def mark_readable(self, index: int) -> None:
        """Records that an image was read."""
        self._status.numpy()[index] = READABLE

    def mark_unreadable(
        self, index: int, path: str, reason: Exception, outcome: str = 'another image replaces it'
    ) -> None:
        """Records that an image could not be read and logs it the first time.

        Args:
            index (int): Index of the image in the dataset.
            path (str): Path of the image, for messages.
            reason (Exception): The exception raised while reading it.
            outcome (str): What happens instead, for the log.

        Raises:
            InputError: If too many images are unreadable.
        """
        status = self._status.numpy()
        already_logged = status[index] == UNREADABLE
        status[index] = UNREADABLE
        num_unreadable, num_seen = self.num_unreadable, int((status != UNSEEN).sum())
        if not already_logged:
            print_log(
                f'{path} cannot be read, {outcome} ({num_unreadable} unreadable so far): {single_line(reason)}',
                'current',
                logging.WARNING,
            )
        tolerated = max(1, self.max_ratio * len(status) / get_world_size())
        too_many = num_unreadable > tolerated and num_unreadable > self.max_ratio * num_seen
        if too_many or num_unreadable == len(status):
            raise InputError(
                f'{num_unreadable} of the {num_seen} images seen so far are unreadable, the last is {path}: '
                f'{single_line(reason)}; repair or remove them, or increase max_unreadable_ratio={self.max_ratio:g}'
            ) from reason
