"""Load time and memory of a proposals file, beside the COCO json of the same boxes through pycocotools.

python benchmarks/proposal_store.py [--photos 118000] [--boxes 100] [--workers 4] [--no-coco] [--json FILE]

Boxes are made up. Each figure is of a fresh process. At the default size pycocotools may need more than 10 GB.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
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
    """Seconds to load a file whose pages are cached, and to fetch the boxes of 10,000 photos."""
    before = memory()
    started = time.perf_counter()
    store = ProposalStore.load(path)
    loaded = time.perf_counter()
    for image_id in np.random.default_rng(1).choice(store.image_ids, 10_000).tolist():
        store.boxes(image_id)
    fetched = time.perf_counter()
    return {'load_s': loaded - started, 'us_a_photo': 100 * (fetched - loaded), 'own_MB': memory() - before}


def load_coco(path):
    """The same through pycocotools."""
    from pycocotools.coco import COCO

    before = memory()
    started = time.perf_counter()
    coco = COCO(path)
    return {'load_s': time.perf_counter() - started, 'own_MB': memory() - before, 'boxes': len(coco.anns)}


def touch_all(store, queue, done):
    """A loader's worker: reads all boxes; tells how much memory that took it."""
    before = memory()
    for image_id in store.image_ids.tolist():
        store.boxes(image_id)
    queue.put(memory() - before)
    done.wait()


def load_workers(path, num_workers):
    """MB of its own that each spawned worker needs, on average, when all have read all boxes."""
    context = multiprocessing.get_context('spawn')
    queue, done, store = context.Queue(), context.Event(), ProposalStore.load(path)
    workers = [context.Process(target=touch_all, args=(store, queue, done)) for _ in range(num_workers)]
    for worker in workers:
        worker.start()
    own = [queue.get() for _ in workers]
    done.set()
    for worker in workers:
        worker.join()
    return {'own_MB_a_worker': sum(own) / len(own)}


TASKS = {'load_store': load_store, 'load_coco': load_coco, 'load_workers': load_workers}


def in_fresh_process(task, *args):
    command = [sys.executable, __file__, '--task', json.dumps([task, *map(str, args)])]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main():
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--photos', type=int, default=118_000)
    parser.add_argument('--boxes', type=int, default=100)
    parser.add_argument('--workers', type=int, default=4)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--no-coco', action='store_true', help='leave pycocotools out')
    parser.add_argument('--folder', help='for the files; a temporary one by default')
    parser.add_argument('--json', help='also write the figures to this file')
    parser.add_argument('--task', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        name, path, *rest = json.loads(args.task)
        print(json.dumps(TASKS[name](path, *map(int, rest))))
        return
    figures = {}
    print(f'{args.photos} photos x {args.boxes} boxes; loading: median of {args.repeats}, file in the page cache')
    print('                   file MB  load s  us a photo  own MB  own MB a worker')
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for kind, dtype in KINDS.items():
            path = Path(folder, 'x.npz')
            store = make_store(args.photos, args.boxes, dtype)
            store.save(path)
            runs = [in_fresh_process('load_store', path) for _ in range(args.repeats)]
            row = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
            row |= in_fresh_process('load_workers', path, args.workers)
            row['file_MB'] = path.stat().st_size / 1e6
            print(
                f'{kind:18s} {row["file_MB"]:8.1f} {row["load_s"]:7.3f} {row["us_a_photo"]:11.1f} {row["own_MB"]:7.1f} '
                f'{row["own_MB_a_worker"]:16.1f}'
            )
            figures[kind] = row
        if not args.no_coco:
            path = Path(folder, 'x.json')
            export_coco(make_store(args.photos, args.boxes, KINDS['whole pixels']), path)
            del store
            row = in_fresh_process('load_coco', path)
            row['file_MB'] = path.stat().st_size / 1e6
            print(f'{"pycocotools":18s} {row["file_MB"]:8.1f} {row["load_s"]:7.1f} {"":11s} {row["own_MB"]:7.1f}')
            figures['pycocotools'] = row
    if args.json:
        with atomic_write(args.json, 'w') as file:
            json.dump(figures, file, indent=2)


if __name__ == '__main__':
    main()
