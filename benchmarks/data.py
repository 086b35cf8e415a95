"""CPU time of the data pipeline per photo: ours beside mmselfsup's MoCo v2 pipeline and the floor, in turn in one run.

python benchmarks/data.py --data PHOTOS [--json FILE]     # a folder of photos; boxes are drawn at random
python benchmarks/data.py --memory                        # resident memory of a loader over 118,000 photos

mmselfsup        its MoCo v2 pipeline, without boxes, collated in batches of 32
mmselfsup, full  the same, and normalized by its data preprocessor
per image        TwoObjectViews: the same transforms, with boxes
loader           SplitTwoObjectViews: what is left to the loader; 48 boxes a photo
full CPU         the loader's part, then the photometric part and normalization, on the CPU
floor            reading, decoding and two bare crops to 224 px by OpenCV's fastest filter, nothing else

"full" is compared with "mmselfsup, full", the others with "mmselfsup". Each is one process and one thread. A ratio is
the median of those of rounds measured next to each other.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.fileio import BaseStorageBackend, register_backend
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch.utils.data import DataLoader

from ccop_mm.datasets import EpochIndexSampler, SampleKey
from ccop_mm.datasets.transforms import sample_window
from ccop_mm.errors import InputError, exit_on_input_error
from ccop_mm.fileio import atomic_write
from ccop_mm.proposals.sources import BadPhoto, list_photos, load_photo
from ccop_mm.proposals.store import ProposalStore

ROOT = Path(__file__).resolve().parents[1]
BATCH = 32
#: Proposals stored for each photo: as many as the search keeps.
STORED = 100


def random_boxes(shape, rng):
    """``(STORED, 4)`` boxes within an image, of 16 px to half its side: their number is what costs, not their place."""
    height, width = shape
    sides = rng.uniform(16, min(height, width) / 2, (STORED, 2))
    corners = rng.uniform(0, 1, (STORED, 2)) * ([width, height] - sides)
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def make_store(folder, path):
    """Writes proposals for a folder's photos; leaves out those that cannot be read."""
    rng, entries, skipped = np.random.default_rng(0), [], {}
    for photo in list_photos(folder):
        try:
            shape = load_photo(photo.path)[0].shape[:2]
        except BadPhoto as reason:
            skipped[photo.file_name] = str(reason)
            continue
        entries.append((photo.image_id, photo.file_name, shape, random_boxes(shape, rng)))
    ProposalStore(entries, skipped).save(path)


def build(config, folder, store, **changes):
    """The data set of a config over a folder of photos."""
    settings = Config.fromfile(ROOT / 'configs' / config).train_dataloader.dataset
    settings.update(data_root=None, ann_file='', data_prefix=dict(img_path=str(folder)), proposal_file=str(store))
    settings.update(changes)
    return DATASETS.build(settings)


def mmselfsup_pipeline():
    """mmselfsup's ``imagenet_mocov2`` pipeline, as its config has it."""
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


def bare_floor(path):
    """Reading, decoding and two crops."""
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    for _ in range(2):
        x1, y1, x2, y2 = sample_window(*image.shape[:2], (0.2, 1.0), (3 / 4, 4 / 3))
        cv2.resize(image[y1:y2, x1:x2], (224, 224))


def run_batches(samples, preprocessor=None):
    """Collates samples, an iterator, by :data:`BATCH`; prepares the batches where that is asked for."""
    batch = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == BATCH:
            data = default_collate(batch)
            if preprocessor is not None:
                preprocessor(data)
            batch = []


def measure(folder, rounds):
    """Milliseconds of CPU time per photo: a list of rounds for each name."""
    with tempfile.TemporaryDirectory() as temporary:
        store = Path(temporary, 'proposals.npz')
        make_store(folder, store)
        split = build('ccop/ccop_r50_fpn_800e_coco.py', folder, store)
        per_image = build('_base_/coco_two_views_per_image.py', folder, store)
    preprocessing = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
    ours = MODELS.build(dict(type='TwoViewDataPreprocessor', **preprocessing))
    theirs = MODELS.build(dict(type='SelfSupDataPreprocessor', **preprocessing))
    pipeline, count = mmselfsup_pipeline(), 2 * BATCH
    paths = [split.get_data_info(number % len(split))['img_path'] for number in range(count)]

    def keys(epoch):
        return [SampleKey(0, epoch, number % len(split), number) for number in range(count)]

    runs = {
        'mmselfsup': lambda epoch: run_batches(pipeline(dict(img_path=path)) for path in paths),
        'mmselfsup, full': lambda epoch: run_batches((pipeline(dict(img_path=path)) for path in paths), theirs),
        'per image': lambda epoch: run_batches(per_image[key] for key in keys(epoch)),
        'loader': lambda epoch: run_batches(split[key] for key in keys(epoch)),
        'full CPU': lambda epoch: run_batches((split[key] for key in keys(epoch)), ours),
        'floor': lambda epoch: [bare_floor(path) for path in paths],
    }
    times = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            run(number)
            if number:  # the first round warms up
                times[name].append(1000 * (time.process_time() - started) / count)
    return times


def ratio(slow, fast):
    """Median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def report_speed(folder, rounds):
    """Prints the table; returns the figures."""
    times = measure(folder, rounds)
    print(f'one thread, CPU time, median of {rounds} rounds of {2 * BATCH} photos')
    print('                   ms/photo   photos/s   over mmselfsup   of the floor')
    for name, values in times.items():
        median, peer = statistics.median(values), times['mmselfsup, full' if 'full' in name else 'mmselfsup']
        print(
            f'{name:17s} {median:9.2f} {1000 / median:10.0f} {ratio(peer, values):16.2f} '
            f'{ratio(values, times["floor"]):14.2f}'
        )
    mine = {name.replace(', ', '_').replace(' ', '_').lower(): values for name, values in times.items()}
    return {
        'loader_over_mmselfsup': ratio(mine['mmselfsup'], mine['loader']),
        'full_cpu_over_mmselfsup': ratio(mine['mmselfsup_full'], mine['full_cpu']),
        'per_image_over_mmselfsup': ratio(mine['mmselfsup'], mine['per_image']),
        'loader_over_floor': ratio(mine['loader'], mine['floor']),
        **{f'{name}_ms': statistics.median(values) for name, values in mine.items()},
    }


class OnePhoto(BaseStorageBackend):
    """The same file for every name: 118,000 photos need not lie there to count what a loader holds."""

    content = b''

    def get(self, filepath):
        return self.content

    def get_text(self, filepath):
        raise NotImplementedError


def memory_of(process='self'):
    """Megabytes of a process: its private part, and its share (by the number of holders) of all it has resident."""
    fields = dict(line.split(':') for line in Path(f'/proc/{process}/smaps_rollup').read_text().splitlines()[1:])
    kilobytes = {name: int(value.split()[0]) for name, value in fields.items() if 'kB' in value}
    return (kilobytes['Private_Clean'] + kilobytes['Private_Dirty']) / 1024, kilobytes['Pss'] / 1024


def loader_memory(num_photos, workers):
    """Private megabytes of a worker (mean), and all workers' share of resident memory, after 2 batches of each."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (27, 40, 3), dtype=np.uint8)
    photo = cv2.resize(noise, (640, 427), interpolation=cv2.INTER_CUBIC)
    OnePhoto.content = cv2.imencode('.jpg', photo)[1].tobytes()
    register_backend('one_photo', OnePhoto, force=True)
    boxes = random_boxes(photo.shape[:2], rng).round()
    backend = dict(backend='one_photo')
    with tempfile.TemporaryDirectory() as temporary:
        store = Path(temporary, 'proposals.npz')
        entries = ((number, f'train2017/{number:012d}.jpg', photo.shape[:2], boxes) for number in range(num_photos))
        ProposalStore(entries).save(store)
        size = store.stat().st_size / 2**20
        gc.collect()
        dataset = build('ccop/ccop_r50_fpn_800e_coco.py', '/photos', store, backend_args=backend)
        dataset.pipeline.transforms[0].backend_args = backend
        sampler = EpochIndexSampler(dataset, seed=0)
        loader = DataLoader(dataset, BATCH, sampler=sampler, num_workers=workers, collate_fn=default_collate)
        batches = iter(loader)
        for _ in range(2 * workers):
            next(batches)
        used = [memory_of(worker.pid) for worker in batches._workers]
        del batches
    return size, statistics.mean(private for private, _ in used), sum(share for _, share in used)


def report_memory(workers=8):
    """Prints the table; returns the figures."""
    print(f'{workers} workers, megabytes')
    print('   photos   proposals file   private, a worker   share of all workers')
    figures = {}
    for num_photos in (1000, 118000):
        size, private, share = loader_memory(num_photos, workers)
        print(f'{num_photos:9d} {size:16.1f} {private:19.1f} {share:22.1f}')
        figures.update({f'worker_private_mb_{num_photos}': private, f'workers_share_mb_{num_photos}': share})
        figures[f'proposals_mb_{num_photos}'] = size
    return figures


def parse_args(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', help='folder of photos')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--memory', action='store_true', help='measure memory in the place of time')
    parser.add_argument('--json', help='also write the figures to this file')
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv=None):
    args = parse_args(argv)
    if not args.data and not args.memory:
        raise InputError('name a folder of photos: --data')
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    init_default_scope('mmselfsup')
    figures = report_memory() if args.memory else report_speed(args.data, args.rounds)
    if args.json:
        with atomic_write(args.json, 'w') as file:
            json.dump(figures, file, indent=2)


if __name__ == '__main__':
    main()
