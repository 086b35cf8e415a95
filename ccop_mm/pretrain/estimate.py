"""Measures a few images and one training step, to estimate how long a pre-training takes."""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmselfsup.registry import DATASETS
from PIL import Image

from ccop_mm.evaluation import load_model
from ccop_mm.proposals.image_record import propose_image
from ccop_mm.proposals.settings import ProposalSettings
from ccop_mm.proposals.store import ProposalStore
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import ImageFile, UnreadableImageError, load_image

T = TypeVar('T')

#: Images whose proposals are generated or used, and images whose size is read.
NUM_SEARCHED, NUM_OPENED = 4, 200
#: Training steps that are timed; one more precedes them.
NUM_STEPS = 2


@dataclass(frozen=True)
class ImageStatistics:
    """What the sizes of a pre-training depend on.

    Args:
        num_images (int): Number of usable images.
        num_skipped (int): Number of unreadable images.
        mean_proposals (float): Mean number of proposals per image, at most ``limit`` of :func:`measure_store`.
        short_sides (list[int]): Short sides in pixels, of all images or of some.
    """

    num_images: int
    num_skipped: int
    mean_proposals: float
    short_sides: list[int]


def measure_store(store: ProposalStore, limit: int) -> ImageStatistics:
    """Computes the statistics of all images with proposals.

    Args:
        store (ProposalStore): Proposals.
        limit (int): Proposals per image that are used in training.
    """
    if not len(store):
        raise InputError(
            f'all {len(store.skipped)} images of the proposals are unreadable: check them, then delete the proposals'
        )
    counts = [min(int(count), limit) for count in store.num_boxes]
    short_sides = [min(store.size(image_id)) for image_id in store.image_ids.tolist()]
    return ImageStatistics(len(store), len(store.skipped), sum(counts) / len(counts), short_sides)


def inspect_images(images: Sequence[ImageFile], root: str | Path, limit: int) -> ImageStatistics:
    """Reads the headers of some images, before the search for proposals.

    Args:
        images (Sequence[ImageFile]): All images.
        root (str | Path): Folder that their names are relative to, for the message.
        limit (int): Proposals per image that are used in training; all images are assumed to have so many.

    Raises:
        InputError: No image of the sample is readable.
    """
    sample = _spread(images, NUM_OPENED)
    # OpenCV decodes formats that Pillow cannot open.
    short_sides = list(_short_sides(sample)) or list(_decoded_short_sides(_spread(sample, NUM_SEARCHED)))
    if not short_sides:
        problem = 'unreadable' if any(image.path.exists() for image in sample) else 'missing'
        raise InputError(
            f'{images[0].path} is {problem}, as are all {len(sample)} images that were checked of {len(images)} in '
            f'{root}: check the files, or pass the folder that the file names are relative to with --image-root'
        )
    return ImageStatistics(len(images), 0, limit, short_sides)


def _decoded_short_sides(images: Sequence[ImageFile]) -> Iterator[int]:
    for image in images:
        with contextlib.suppress(UnreadableImageError):
            yield min(load_image(image.path)[0].shape[:2])


@dataclass(frozen=True)
class Sample:
    """Proposals of a few images.

    Args:
        store (ProposalStore): Proposals of these images.
        statistics (ImageStatistics): Statistics of the sample, with the number of all images.
        seconds_per_image (float): Seconds to generate the proposals of an image in one process.
    """

    store: ProposalStore
    statistics: ImageStatistics
    seconds_per_image: float


def sample_images(images: Sequence[ImageFile], limit: int) -> Sample:
    """Generates the proposals of a few images that are spread over all.

    Args:
        images (Sequence[ImageFile]): All images.
        limit (int): Proposals per image that are used in training.

    Raises:
        InputError: No image of the sample is readable.
    """
    started = time.perf_counter()
    records = [propose_image(image, ProposalSettings()) for image in _spread(images, NUM_SEARCHED)]
    seconds = time.perf_counter() - started
    entries = [(r.image_id, r.file_name, r.size, r.boxes) for r in records if r.boxes is not None]
    if not entries:
        raise InputError(f'{images[0].path} and {len(records) - 1} other images of {len(images)} are unreadable')
    store = ProposalStore(entries)
    part = measure_store(store, limit)
    short_sides = list(_short_sides(_spread(images, NUM_OPENED))) or part.short_sides
    statistics = ImageStatistics(len(images), 0, part.mean_proposals, short_sides)
    return Sample(store, statistics, seconds / len(records))


def _spread(items: Sequence[T], count: int) -> list[T]:
    """Returns at most ``count`` items at equal distances."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _short_sides(images: Sequence[ImageFile]) -> Iterator[int]:
    """Yields the short sides of the images that can be opened; only their headers are read."""
    for image in images:
        with contextlib.suppress(OSError, ValueError), Image.open(image.path) as opened:
            yield min(opened.size)


@dataclass(frozen=True)
class StepTime:
    """Time of a training step.

    Args:
        step (float): Seconds of forward and backward pass and optimizer, on the device.
        loading (float): CPU seconds to load a batch.
    """

    step: float
    loading: float

    def estimate(self, steps: int, num_workers: int) -> float:
        """Estimates the seconds of a number of steps.

        Loading takes place beside the step. On a GPU, the slower of both counts; on a CPU, both share the cores.

        Args:
            steps (int): Number of steps.
            num_workers (int): Processes of the data loader.
        """
        if not num_workers:
            return steps * (self.step + self.loading)
        if get_device() != 'cpu':
            return steps * max(self.step, self.loading / num_workers)
        return steps * (self.step + self.loading / max(os.cpu_count() or 1, 1))


def time_step(cfg: Config, store: ProposalStore) -> StepTime:
    """Measures the training step of a config on a few real images, which are repeated to fill a batch.

    Args:
        cfg (Config): Pre-training config, prepared for this machine.
        store (ProposalStore): Proposals of all images, or of some.
    """
    batch_size = cfg.train_dataloader.batch_size
    with tempfile.TemporaryDirectory() as folder, DefaultScope.overwrite_default_scope('mmselfsup'):
        dataset = DATASETS.build(_write_subset(cfg, store, Path(folder)))
        started = time.perf_counter()
        batch = default_collate([dataset[index % len(dataset)] for index in range(batch_size)])
        loading = time.perf_counter() - started
        model: Any = load_model(cfg).to(get_device())
        optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        times = []
        for _ in range(NUM_STEPS + 1):
            started = time.perf_counter()
            model.train_step(batch, optim_wrapper)
            if get_device() == 'cuda':
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
    return StepTime(min(times[1:]), loading)


def _write_subset(cfg: Config, store: ProposalStore, folder: Path) -> dict:
    """Writes the proposals of a few images to a folder; returns the config of the dataset of these images."""
    image_ids = _spread(store.image_ids.tolist(), NUM_SEARCHED)
    entries = [(number, store.file_name(number), store.size(number), store.boxes(number)) for number in image_ids]
    proposals, images = folder / 'proposals.npz', folder / 'images.json'
    ProposalStore(entries).save(proposals)
    images.write_text(json.dumps(dict(images=[dict(id=entry[0], file_name=entry[1]) for entry in entries])))
    return {**cfg.train_dataloader.dataset, 'ann_file': str(images), 'proposal_file': str(proposals)}
