"""Load time and memory of a proposals file, beside the COCO json of the same boxes through pycocotools.

python benchmarks/proposal_store.py [--photos 118000] [--boxes 100] [--coco-photos 118000] [--json FILE]

Boxes are made up. Each figure is of a forked process of its own, as a loader's workers are on Linux; times are CPU
seconds with the file in the page cache. At the default size pycocotools may need more than 10 GB.
"""

import argparse
import contextlib
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np

from ccop_mm.fileio import atomic_write
from ccop_mm.proposals import ProposalStore, export_coco

KINDS = {'whole pixels': np.uint16, 'float32': np.float32}


def make_store(num_photos, num_boxes, dtype):
    """Photos of 480 x 640 with boxes at random places."""
    rng = np.random.default_rng(0)
    first = rng.uniform(0, 400, (num_photos, num_boxes, 2))
    boxes = np.concatenate([first, first + rng.uniform(12, 80, first.shape)], axis=2).astype(dtype)
    ids = np.sort(rng.choice(600_000, num_photos, replace=False)).tolist()
    entries = [(image_id, f'{image_id:012d}.jpg', (480, 640), boxes[i]) for i, image_id in enumerate(ids)]
    return ProposalStore(entries, metadata={'method': 'made up'}, digests={image_id: 1 + image_id for image_id in ids})


def memory():
    """MB of this process that are not pages of files, which processes share."""
    rows = dict(line.split(':') for line in Path('/proc/self/status').read_text().splitlines())
    return int(rows['RssAnon'].split()[0]) / 1000


def load_store(path):
    """CPU seconds to load a file, microseconds to fetch a photo's boxes, and memory."""
    before, started = memory(), time.process_time()
    store = ProposalStore.load(path)
    loaded = time.process_time()
    chosen = np.random.default_rng(1).choice(store.image_ids, 10_000).tolist()
    fetching = time.process_time()
    for image_id in chosen:
        store.boxes(image_id)
    fetched = time.process_time()
    own = memory() - before
    worker = in_child(touch, lambda: read_all(store))
    return {
        'load_s': loaded - started,
        'us_a_photo': 100 * (fetched - fetching),
        'own_MB': own,
        'own_MB_a_worker': worker,
    }


def read_all(store):
    for image_id in store.image_ids.tolist():
        store.boxes(image_id)


def load_coco(path):
    """The same through pycocotools, without the fetching."""
    from pycocotools.coco import COCO

    before, started = memory(), time.process_time()
    coco = COCO(path)
    figures = {'load_s': time.process_time() - started, 'own_MB': memory() - before}
    worker = in_child(touch, lambda: [ann['bbox'] for image_id in coco.getImgIds() for ann in coco.imgToAnns[image_id]])
    return {**figures, 'own_MB_a_worker': worker}


def touch(read):
    """MB that a loader's worker gets of its own when it has read all boxes: what it writes to, reference counts too."""
    rows = private()
    read()
    return private() - rows


def private():
    """MB of pages that no other process has."""
    rows = dict(line.split(':') for line in Path('/proc/self/smaps_rollup').read_text().splitlines()[1:])
    return int(rows['Private_Dirty'].split()[0]) / 1000


def make_file(path, num_photos, num_boxes, kind):
    store = make_store(num_photos, num_boxes, KINDS[kind])
    if path.suffix == '.json':
        export_coco(store, path)
    else:
        store.save(path)
    return path.stat().st_size / 1e6


def in_child(function, *args):
    """The result of a function in a forked process."""
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(function(*args)))
    child.start()
    sender.close()
    result = receiver.recv()
    child.join()
    return result


def show(name, row):
    fetch = f'{row["us_a_photo"]:11.1f}' if 'us_a_photo' in row else ' ' * 11
    print(
        f'{name:13s} {row["photos"]:7d} {row["file_MB"]:8.1f} {row["load_s"]:10.3f} {fetch} {row["own_MB"]:8.1f} '
        f'{row["own_MB_a_worker"]:16.1f}',
        flush=True,
    )


def parse_args(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--photos', type=int, default=118_000)
    parser.add_argument('--boxes', type=int, default=100)
    parser.add_argument('--coco-photos', type=int, default=118_000, help='for pycocotools; 0: leave it out')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--json', help='also write the figures to this file')
    return parser.parse_args(argv)


def main():
    """Prints a table."""
    args = parse_args()
    figures = {}
    print(f'{args.boxes} boxes a photo; loading: median of {args.repeats}')
    print('                photos  file MB load CPU s  us a photo   own MB  own MB a worker')
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            path = Path(folder, 'x.npz')
            size = in_child(make_file, path, args.photos, args.boxes, kind)
            runs = [in_child(load_store, path) for _ in range(args.repeats)]
            row = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
            figures[kind] = {'photos': args.photos, 'file_MB': size, **row}
            show(kind, figures[kind])
        if args.coco_photos:
            path = Path(folder, 'x.json')
            size = in_child(make_file, path, args.coco_photos, args.boxes, 'whole pixels')
            with contextlib.redirect_stdout(None):
                row = in_child(load_coco, path)
            figures['pycocotools'] = {'photos': args.coco_photos, 'file_MB': size, **row}
            show('pycocotools', figures['pycocotools'])
    if args.json:
        with atomic_write(args.json, 'w') as file:
            json.dump(figures, file, indent=2)


if __name__ == '__main__':
    main()
