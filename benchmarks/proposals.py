"""Selective search: ccop_mm's engine and OpenCV's, CPU seconds an image in turn in one run, and the boxes compared.

python benchmarks/proposals.py [PHOTOS] [--limit N] [--mode fast] [--json FILE]

Without a folder of photos it takes those that ship with scikit-image.
"""

import argparse
import json
import multiprocessing
import re
import statistics
import time
from pathlib import Path

import cv2

from ccop_mm.datasets.scene_backgrounds import installed_photos
from ccop_mm.fileio import atomic_write
from ccop_mm.proposals import propose
from ccop_mm.proposals.search import ENGINES, MODES

MEGAPIXELS = (0.1, 0.25, 0.5, 1.0, 2.0)


def read_photos(folder, limit):
    """BGR photos: evenly spread over the sorted files of a folder, or scikit-image's own."""
    if folder is None:
        paths = [installed_photos() / name for name in ('coffee.png', 'hubble_deep_field.jpg', 'astronaut.png')]
    else:
        paths = sorted(path for path in Path(folder).rglob('*') if path.suffix.lower() in ('.jpg', '.jpeg', '.png'))
    step = max(1, len(paths) // limit)
    return [cv2.imread(str(path)) for path in paths[::step][:limit]]


def resize(photo, megapixels):
    """The photo at another area."""
    scale = (megapixels * 1e6 / (photo.shape[0] * photo.shape[1])) ** 0.5
    return cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def cpu_seconds(photo, mode, engine):
    """CPU time of one search, and its boxes."""
    started = time.thread_time()
    boxes = propose(photo, mode, engine)
    return time.thread_time() - started, boxes


def compare(photo, mode):
    """CPU seconds of both engines, in the order of ENGINES, and the share of boxes in common."""
    (ours, boxes), (theirs, reference) = (cpu_seconds(photo, mode, engine) for engine in ENGINES)
    sets = [set(map(tuple, each.tolist())) for each in (boxes, reference)]
    return ours, theirs, len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def peak_mebibytes(photo, mode, engine):
    """What a search needs at most beside the process and its modules; to be run in a fresh process. Linux only."""
    propose(photo[:40, :40], mode, engine)
    Path('/proc/self/clear_refs').write_text('5')  # forgets the peak so far, which is that of importing torch
    before = _mebibytes('VmRSS')
    propose(photo, mode, engine)
    return _mebibytes('VmHWM') - before


def _mebibytes(name):
    return int(re.search(rf'{name}:\s+(\d+) kB', Path('/proc/self/status').read_text()).group(1)) / 1024


def peak_in_fresh_process(*args):
    """:func:`peak_mebibytes` of a new process."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(peak_mebibytes, args)


def parse_args(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('photos', nargs='?', help='folder')
    parser.add_argument('--limit', type=int, default=15, help='photos taken of the folder (%(default)s)')
    parser.add_argument('--mode', choices=MODES, default='fast')
    parser.add_argument('--json', help='also write the figures to this file')
    return parser.parse_args(argv)


def main():
    """Prints two tables: the photos at full size, and the first of them at several sizes."""
    args = parse_args()
    cv2.setNumThreads(1)
    photos = read_photos(args.photos, args.limit)
    propose(photos[0], args.mode)  # compiled, or read from disk, before the clock starts
    rows = [compare(photo, args.mode) for photo in photos]
    ratios = [theirs / ours for ours, theirs, _ in rows]
    figures = {
        'photos': len(photos),
        'native_cpu_median': statistics.median(ours for ours, _, _ in rows),
        'opencv_cpu_median': statistics.median(theirs for _, theirs, _ in rows),
        'opencv_over_native_cpu_median': statistics.median(ratios),
        'opencv_over_native_cpu_min': min(ratios),
        'min_common_boxes': min(common for _, _, common in rows),
    }
    print(f'{len(photos)} photos at full size, mode {args.mode}, one thread')
    print(
        f'CPU seconds, median     native {figures["native_cpu_median"]:.3f}   opencv {figures["opencv_cpu_median"]:.3f}'
    )
    print(f'opencv / native         median {statistics.median(ratios):.1f}    {min(ratios):.1f} to {max(ratios):.1f}')
    print(f'boxes in common, least  {figures["min_common_boxes"]:.4f}')
    print('\nMpixel   native s   opencv s   opencv / native   peak MiB: native   opencv')
    for megapixels in MEGAPIXELS:
        photo = resize(photos[0], megapixels)
        ours, theirs, common = compare(photo, args.mode)
        ratio = theirs / ours
        peaks = [peak_in_fresh_process(photo, args.mode, engine) for engine in ENGINES]
        print(f'{megapixels:6.2f} {ours:10.3f} {theirs:10.3f} {ratio:17.1f} {peaks[0]:18.0f} {peaks[1]:8.0f}')
        figures['min_common_boxes'] = min(figures['min_common_boxes'], common)
        name = f'{megapixels:g}mpx'
        figures.update({f'native_cpu_{name}': ours, f'opencv_cpu_{name}': theirs, f'opencv_over_native_{name}': ratio})
        figures.update({f'native_peak_mib_{name}': peaks[0], f'opencv_peak_mib_{name}': peaks[1]})
    if args.json:
        with atomic_write(args.json, 'w') as file:
            json.dump(figures, file, indent=2)


if __name__ == '__main__':
    main()
