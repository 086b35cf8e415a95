"""Measures load time and memory of a proposals file, compared with the same boxes as COCO json through pycocotools.

python benchmarks/proposal_store.py [--images 118000] [--boxes 100] [--coco-images 118000] [--json FILE]

The boxes are random. Every measurement runs in a forked process, like a data loader worker on Linux; times are CPU
seconds with the file in the page cache. At the default size pycocotools may need more than 10 GB of memory.
"""

import argparse
import contextlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ccop_mm.proposals import ProposalStore, export_coco
from ccop_mm.utils.file_io import atomic_write

KINDS = {'whole pixels': np.uint16, 'float32': np.float32}


def make_store(num_images: int, num_boxes: int, dtype: type) -> ProposalStore:
    """Creates proposals of 480 x 640 images with boxes at random positions."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 400, (num_images, num_boxes, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(12, 80, corners.shape)], axis=2).astype(dtype)
    ids = np.sort(rng.choice(600_000, num_images, replace=False)).tolist()
    entries = [(image_id, f'{image_id:012d}.jpg', (480, 640), boxes[i]) for i, image_id in enumerate(ids)]
    return ProposalStore(entries, metadata={'method': 'made up'}, digests={image_id: 1 + image_id for image_id in ids})


def anonymous_megabytes() -> float:
    """Returns the resident memory of this process in MB, without file pages, which processes share."""
    rows = dict(line.split(':') for line in Path('/proc/self/status').read_text().splitlines())
    return int(rows['RssAnon'].split()[0]) / 1000


def private_megabytes() -> float:
    """Returns the size of the memory pages in MB that only this process has."""
    rows = dict(line.split(':') for line in Path('/proc/self/smaps_rollup').read_text().splitlines()[1:])
    return int(rows['Private_Dirty'].split()[0]) / 1000


def worker_megabytes(read_all: Callable[[], Any]) -> float:
    """Returns the private memory in MB that a forked worker needs to read all boxes, reference counts included."""
    before = private_megabytes()
    read_all()
    return private_megabytes() - before


def measure_store(path: Path) -> dict[str, float]:
    """Measures the time to load a proposals file and to fetch the boxes of an image, and the memory."""
    before, start = anonymous_megabytes(), time.process_time()
    store = ProposalStore.load(path)
    load_time = time.process_time() - start
    image_ids = np.random.default_rng(1).choice(store.image_ids, 10_000).tolist()
    start = time.process_time()
    for image_id in image_ids:
        store.boxes(image_id)
    fetch_time = time.process_time() - start
    own = anonymous_megabytes() - before

    def read_all() -> None:
        for image_id in store.image_ids.tolist():
            store.boxes(image_id)

    return {
        'load_s': load_time,
        'us_a_photo': 100 * fetch_time,
        'own_MB': own,
        'own_MB_a_worker': in_forked_process(worker_megabytes, read_all),
    }


def measure_coco(path: Path) -> dict[str, float]:
    """Measures the time to load a COCO json with pycocotools, and the memory."""
    from pycocotools.coco import COCO

    before, start = anonymous_megabytes(), time.process_time()
    coco = COCO(path)
    results = {'load_s': time.process_time() - start, 'own_MB': anonymous_megabytes() - before}

    def read_all() -> list[list[float]]:
        return [annotation['bbox'] for image_id in coco.getImgIds() for annotation in coco.imgToAnns[image_id]]

    return {**results, 'own_MB_a_worker': in_forked_process(worker_megabytes, read_all)}


def write_file(path: Path, num_images: int, num_boxes: int, kind: str) -> float:
    """Writes random proposals, as COCO json if the suffix is ``.json``; returns the size in MB."""
    store = make_store(num_images, num_boxes, KINDS[kind])
    if path.suffix == '.json':
        export_coco(store, path)
    else:
        store.save(path)
    return path.stat().st_size / 1e6


def in_forked_process(function: Callable, *args: object) -> Any:
    """Calls a function in a forked process; returns its result."""
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(function(*args)))
    child.start()
    sender.close()
    result = receiver.recv()
    child.join()
    return result


def print_row(name: str, row: dict[str, float]) -> None:
    fetch = f'{row["us_a_photo"]:12.1f}' if 'us_a_photo' in row else ' ' * 12
    print(
        f'{name:13s} {row["photos"]:7d} {row["file_MB"]:8.1f} {row["load_s"]:10.3f} {fetch} {row["own_MB"]:8.1f} '
        f'{row["own_MB_a_worker"]:19.1f}',
        flush=True,
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--images',
        '--photos',
        type=int,
        default=118_000,
        help='number of images (default: %(default)s)',
    )
    parser.add_argument('--boxes', type=int, default=100, help='boxes per image (default: %(default)s)')
    parser.add_argument(
        '--coco-images',
        '--coco-photos',
        type=int,
        default=118_000,
        help='number of images for pycocotools; 0 skips it (default: %(default)s)',
    )
    parser.add_argument(
        '--repeats', type=int, default=3, help='loads per proposals file, of which the median counts (default: 3)'
    )
    parser.add_argument('--json', help='also write the results to this file')
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    results = {}
    print(f'{args.boxes} boxes per image; loading: median of {args.repeats}')
    print('               images  file MB load CPU s us per image   own MB  own MB per worker')
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            path = Path(folder, 'x.npz')
            size = in_forked_process(write_file, path, args.images, args.boxes, kind)
            runs = [in_forked_process(measure_store, path) for _ in range(args.repeats)]
            row = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
            results[kind] = {'photos': args.images, 'file_MB': size, **row}
            print_row(kind, results[kind])
        if args.coco_images:
            path = Path(folder, 'x.json')
            size = in_forked_process(write_file, path, args.coco_images, args.boxes, 'whole pixels')
            with contextlib.redirect_stdout(None):
                row = in_forked_process(measure_coco, path)
            results['pycocotools'] = {
                'photos': args.coco_images,
                'file_MB': size,
                **row,
            }
            print_row('pycocotools', results['pycocotools'])
    if args.json:
        with atomic_write(args.json, 'w') as file:
            json.dump(results, file, indent=2)


if __name__ == '__main__':
    main()
