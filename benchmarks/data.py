"""Measures the CPU time of the data pipeline per image, compared with mmselfsup's MoCo v2 pipeline and a lower bound.

python benchmarks/data.py --data IMAGES [--json FILE]     # IMAGES: a folder; the boxes are random
python benchmarks/data.py --memory                        # memory of a data loader over 118,000 images

mmselfsup        mmselfsup's MoCo v2 pipeline, without boxes, collated in batches of 32
mmselfsup, full  the same, plus normalization by its data preprocessor
per image        TwoObjectViews: the same transforms, with boxes
loader           SplitTwoObjectViews: the part that runs in the data loader; 48 boxes per image
full CPU         the loader's part, plus the photometric part and normalization, on the CPU
floor            lower bound: reading, decoding and two crops to 224 px with OpenCV's bilinear filter

"full CPU" is compared with "mmselfsup, full", the others with "mmselfsup". All run alternately in one process on one
thread. Ratios are medians of the ratios within a round.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.fileio import BaseStorageBackend, register_backend
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch.utils.data import DataLoader, Dataset

from ccop_mm.datasets import EpochIndexSampler, SampleKey
from ccop_mm.datasets.transforms import sample_crop_box
from ccop_mm.proposals.store import ProposalStore
from ccop_mm.utils.errors import InputError, exit_on_input_error
from ccop_mm.utils.file_io import atomic_write
from ccop_mm.utils.images import UnreadableImageError, list_images, load_image

ROOT = Path(__file__).resolve().parents[1]
BATCH_SIZE = 32
#: Proposals stored per image, as many as tools/propose.py keeps.
NUM_STORED = 100


def random_boxes(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Samples ``(NUM_STORED, 4)`` boxes inside an image of ``(height, width)``, with sides from 16 px to half of it."""
    height, width = shape
    sides = rng.uniform(16, min(height, width) / 2, (NUM_STORED, 2))
    corners = rng.uniform(0, 1, (NUM_STORED, 2)) * ([width, height] - sides)
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def write_store(folder: str, path: Path) -> None:
    """Writes random proposals for the images of a folder; unreadable ones are recorded as skipped."""
    rng, entries, skipped = np.random.default_rng(0), [], {}
    for image_file in list_images(folder):
        try:
            shape = load_image(image_file.path)[0].shape[:2]
        except UnreadableImageError as error:
            skipped[image_file.file_name] = str(error)
            continue
        entries.append((image_file.image_id, image_file.file_name, shape, random_boxes(shape, rng)))
    ProposalStore(entries, skipped).save(path)


def build_dataset(config: str, folder: str, store: Path, **changes: object) -> Dataset:
    """Builds the training dataset of a config in ``configs/`` for a folder of images."""
    settings = Config.fromfile(ROOT / 'configs' / config).train_dataloader.dataset
    settings.update(data_root=None, ann_file='', data_prefix=dict(img_path=str(folder)), proposal_file=str(store))
    settings.update(changes)
    return DATASETS.build(settings)


def mmselfsup_pipeline() -> Callable[[dict], dict]:
    """Builds mmselfsup's ``imagenet_mocov2`` pipeline with the settings of its config."""
    from mmcv.transforms import Compose

    views = [
        dict(type='RandomResizedCrop', size=224, scale=(0.2, 1.0), backend='pillow'),
        dict(
            type='RandomApply',
            transforms=[dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)],
            prob=0.8,
        ),
        dict(type='RandomGrayscale', prob=0.2, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989)),
        dict(type='RandomGaussianBlur', sigma_min=0.1, sigma_max=2.0, prob=0.5),
        dict(type='RandomFlip', prob=0.5),
    ]
    return Compose(
        [
            dict(type='LoadImageFromFile'),
            dict(type='MultiView', num_views=2, transforms=[views]),
            dict(type='PackSelfSupInputs', meta_keys=['img_path']),
        ]
    )


def lower_bound(path: str) -> None:
    """Reads and decodes an image and makes two crops."""
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    for _ in range(2):
        x1, y1, x2, y2 = sample_crop_box(*image.shape[:2], (0.2, 1.0), (3 / 4, 4 / 3))
        cv2.resize(image[y1:y2, x1:x2], (224, 224))


def run_batches(samples: Iterable[dict], preprocessor: torch.nn.Module | None = None) -> None:
    """Collates samples in batches of :data:`BATCH_SIZE` and optionally passes them through a data preprocessor."""
    batch = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == BATCH_SIZE:
            data = default_collate(batch)
            if preprocessor is not None:
                preprocessor(data)
            batch = []


def measure(folder: str, rounds: int) -> dict[str, list[float]]:
    """Measures the CPU time per image in ms; returns pipeline name -> one value per round."""
    with tempfile.TemporaryDirectory() as temporary:
        store = Path(temporary, 'proposals.npz')
        write_store(folder, store)
        split = build_dataset('ccop/ccop_r50_fpn_800e_coco.py', folder, store)
        per_image = build_dataset('_base_/coco_two_views_per_image.py', folder, store)
    normalization = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
    ours = MODELS.build(dict(type='TwoViewDataPreprocessor', **normalization))
    theirs = MODELS.build(dict(type='SelfSupDataPreprocessor', **normalization))
    pipeline, count = mmselfsup_pipeline(), 2 * BATCH_SIZE
    paths = [split.get_data_info(number % len(split))['img_path'] for number in range(count)]

    def keys(epoch: int) -> list[SampleKey]:
        return [SampleKey(0, epoch, number % len(split), number) for number in range(count)]

    runs = {
        'mmselfsup': lambda epoch: run_batches(pipeline(dict(img_path=path)) for path in paths),
        'mmselfsup, full': lambda epoch: run_batches((pipeline(dict(img_path=path)) for path in paths), theirs),
        'per image': lambda epoch: run_batches(per_image[key] for key in keys(epoch)),
        'loader': lambda epoch: run_batches(split[key] for key in keys(epoch)),
        'full CPU': lambda epoch: run_batches((split[key] for key in keys(epoch)), ours),
        'floor': lambda epoch: [lower_bound(path) for path in paths],
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run(number)
            if number:  # the first round is a warm-up
                times[name].append(1000 * (time.process_time() - start) / count)
    return times


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Returns the median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def report_speed(folder: str, rounds: int) -> dict[str, float]:
    """Measures the CPU times and prints a table; returns name -> result."""
    times = measure(folder, rounds)
    print(f'one thread, CPU time, median of {rounds} rounds of {2 * BATCH_SIZE} images')
    print('                   ms/image   images/s   over mmselfsup   of the floor')
    for name, values in times.items():
        median, baseline = statistics.median(values), times['mmselfsup, full' if 'full' in name else 'mmselfsup']
        print(
            f'{name:17s} {median:9.2f} {1000 / median:10.0f} {ratio(baseline, values):16.2f} '
            f'{ratio(values, times["floor"]):14.2f}'
        )
    flat = {name.replace(', ', '_').replace(' ', '_').lower(): values for name, values in times.items()}
    return {
        'loader_over_mmselfsup': ratio(flat['mmselfsup'], flat['loader']),
        'full_cpu_over_mmselfsup': ratio(flat['mmselfsup_full'], flat['full_cpu']),
        'per_image_over_mmselfsup': ratio(flat['mmselfsup'], flat['per_image']),
        'loader_over_floor': ratio(flat['loader'], flat['floor']),
        **{f'{name}_ms': statistics.median(values) for name, values in flat.items()},
    }


class SingleImageBackend(BaseStorageBackend):
    """A file backend that returns the same image for every name, so that a large dataset needs no image files."""

    content = b''

    def get(self, filepath: str) -> bytes:
        return self.content

    def get_text(self, filepath: str) -> str:
        return self.get(filepath).decode()


def process_megabytes(process: int | str = 'self') -> tuple[float, float]:
    """Returns the private memory of a process and its proportional set size, in MB."""
    fields = dict(line.split(':') for line in Path(f'/proc/{process}/smaps_rollup').read_text().splitlines()[1:])
    kilobytes = {name: int(value.split()[0]) for name, value in fields.items() if 'kB' in value}
    return (kilobytes['Private_Clean'] + kilobytes['Private_Dirty']) / 1024, kilobytes['Pss'] / 1024


def loader_memory(num_images: int, workers: int) -> tuple[float, float, float]:
    """Measures a data loader after two batches per worker.

    Returns:
        tuple[float, float, float]: Size of the proposals file, mean private memory of a worker, and sum of the workers'
        proportional set sizes, in MB.
    """
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (27, 40, 3), dtype=np.uint8)
    image = cv2.resize(noise, (640, 427), interpolation=cv2.INTER_CUBIC)
    SingleImageBackend.content = cv2.imencode('.jpg', image)[1].tobytes()
    register_backend('single_image', SingleImageBackend, force=True)
    boxes = random_boxes(image.shape[:2], rng).round()
    backend = dict(backend='single_image')
    with tempfile.TemporaryDirectory() as temporary:
        store = Path(temporary, 'proposals.npz')
        entries = ((number, f'train2017/{number:012d}.jpg', image.shape[:2], boxes) for number in range(num_images))
        ProposalStore(entries).save(store)
        size = store.stat().st_size / 2**20
        gc.collect()
        dataset = build_dataset('ccop/ccop_r50_fpn_800e_coco.py', '/images', store, backend_args=backend)
        dataset.pipeline.transforms[0].backend_args = backend
        sampler = EpochIndexSampler(dataset, seed=0)
        loader = DataLoader(dataset, BATCH_SIZE, sampler=sampler, num_workers=workers, collate_fn=default_collate)
        batches = iter(loader)
        for _ in range(2 * workers):
            next(batches)
        used = [process_megabytes(worker.pid) for worker in batches._workers]
        del batches
    return size, statistics.mean(private for private, _ in used), sum(share for _, share in used)


def report_memory(workers: int = 8) -> dict[str, float]:
    """Measures the memory of a data loader and prints a table; returns name -> result."""
    print(f'{workers} workers, MB')
    print('   images   proposals file   private per worker   all workers (proportional set size)')
    results = {}
    for num_images in (1000, 118000):
        size, private, share = loader_memory(num_images, workers)
        print(f'{num_images:9d} {size:16.1f} {private:20.1f} {share:37.1f}')
        results.update({f'worker_private_mb_{num_images}': private, f'workers_share_mb_{num_images}': share})
        results[f'proposals_mb_{num_images}'] = size
    return results


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', metavar='IMAGES', help='folder of images')
    parser.add_argument('--rounds', type=int, default=9, help='measurements per pipeline (default: %(default)s)')
    parser.add_argument('--memory', action='store_true', help='measure memory instead of time')
    parser.add_argument('--json', help='also write the results to this file')
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if not args.data and not args.memory:
        raise InputError('no folder of images: pass --data IMAGES or --memory')
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    init_default_scope('mmselfsup')
    results = report_memory() if args.memory else report_speed(args.data, args.rounds)
    if args.json:
        with atomic_write(args.json, 'w') as file:
            json.dump(results, file, indent=2)


if __name__ == '__main__':
    main()
