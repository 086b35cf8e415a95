"""Compares the selective search engines of ccop_mm and OpenCV: CPU time per image, memory, and the boxes.

python benchmarks/proposals.py [IMAGES] [--limit N] [--mode fast] [--json FILE]

IMAGES is a folder; without it the benchmark uses images from the scikit-image package. Both engines run alternately on
each image, on one thread.
"""

import argparse
import json
import multiprocessing
import re
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from ccop_mm.proposals import propose
from ccop_mm.proposals.settings import ENGINES, MODES
from ccop_mm.utils.errors import InputError, exit_on_input_error
from ccop_mm.utils.file_io import atomic_write

ROOT = Path(__file__).resolve().parents[1]
MEGAPIXELS = (0.1, 0.25, 0.5, 1.0, 2.0)
SUFFIXES = ('.jpg', '.jpeg', '.png')


def read_images(folder: str | None, limit: int) -> list[np.ndarray]:
    """Reads up to ``limit`` evenly spaced files of a folder, or images of scikit-image; each is ``(h, w, 3)``, BGR."""
    if folder is None:
        sys.path.append(str(ROOT / 'demo'))
        from synthetic_scenes.backgrounds import installed_images

        root = installed_images()
        if root is None:
            raise InputError('scikit-image is not installed; pass a folder of images')
        paths = [root / name for name in ('coffee.png', 'hubble_deep_field.jpg', 'astronaut.png')]
    else:
        paths = sorted(path for path in Path(folder).rglob('*') if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise InputError(f'{folder} contains no {", ".join(SUFFIXES)} files')
    step = max(1, len(paths) // limit)
    return [cv2.imread(str(path)) for path in paths[::step][:limit]]


def resize(image: np.ndarray, megapixels: float) -> np.ndarray:
    """Resizes an image to an area, keeping its aspect ratio."""
    scale = (megapixels * 1e6 / (image.shape[0] * image.shape[1])) ** 0.5
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def cpu_seconds(image: np.ndarray, mode: str, engine: str) -> tuple[float, np.ndarray]:
    """Returns the CPU time of one search and its boxes ``(n, 4)``."""
    start = time.thread_time()
    boxes = propose(image, mode, engine)
    return time.thread_time() - start, boxes


def compare(image: np.ndarray, mode: str) -> tuple[float, float, float]:
    """Returns the CPU seconds of both engines, in the order of ``ENGINES``, and the IoU of their sets of boxes."""
    (ours, boxes), (theirs, reference) = (cpu_seconds(image, mode, engine) for engine in ENGINES)
    sets = [set(map(tuple, each.tolist())) for each in (boxes, reference)]
    return ours, theirs, len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def peak_mebibytes(image: np.ndarray, mode: str, engine: str) -> float:
    """Returns the peak memory of a search on top of the process before it. Linux only; call it in a fresh process."""
    propose(image[:40, :40], mode, engine)
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak, which importing torch has raised
    before = _status_mebibytes('VmRSS')
    propose(image, mode, engine)
    return _status_mebibytes('VmHWM') - before


def _status_mebibytes(name: str) -> float:
    return int(re.search(rf'{name}:\s+(\d+) kB', Path('/proc/self/status').read_text()).group(1)) / 1024


def peak_in_fresh_process(*args: object) -> float:
    """Calls :func:`peak_mebibytes` in a new process."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(peak_mebibytes, args)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', nargs='?', metavar='IMAGES', help='folder of images')
    parser.add_argument('--limit', type=int, default=15, help='number of images to use (default: %(default)s)')
    parser.add_argument('--mode', choices=MODES, default='fast', help='search mode (default: %(default)s)')
    parser.add_argument('--json', help='also write the results to this file')
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cv2.setNumThreads(1)
    images = read_images(args.images, args.limit)
    propose(images[0], args.mode)  # compiles the engine or loads the compiled code
    rows = [compare(image, args.mode) for image in images]
    ratios = [theirs / ours for ours, theirs, _ in rows]
    results = {
        'photos': len(images),
        'native_cpu_median': statistics.median(ours for ours, _, _ in rows),
        'opencv_cpu_median': statistics.median(theirs for _, theirs, _ in rows),
        'opencv_over_native_cpu_median': statistics.median(ratios),
        'opencv_over_native_cpu_min': min(ratios),
        'min_common_boxes': min(common for _, _, common in rows),
    }
    print(f'{len(images)} images at full size, mode {args.mode}, one thread')
    print(
        f'CPU seconds, median     native {results["native_cpu_median"]:.3f}   opencv {results["opencv_cpu_median"]:.3f}'
    )
    print(f'opencv / native         median {statistics.median(ratios):.1f}    {min(ratios):.1f} to {max(ratios):.1f}')
    print(f'common boxes, minimum   {results["min_common_boxes"]:.4f}')
    print('\nMpixel   native s   opencv s   opencv / native   peak MiB: native   opencv')
    for megapixels in MEGAPIXELS:
        image = resize(images[0], megapixels)
        ours, theirs, common = compare(image, args.mode)
        ratio = theirs / ours
        peaks = [peak_in_fresh_process(image, args.mode, engine) for engine in ENGINES]
        print(f'{megapixels:6.2f} {ours:10.3f} {theirs:10.3f} {ratio:17.1f} {peaks[0]:18.0f} {peaks[1]:8.0f}')
        results['min_common_boxes'] = min(results['min_common_boxes'], common)
        name = f'{megapixels:g}mpx'
        results.update({f'native_cpu_{name}': ours, f'opencv_cpu_{name}': theirs, f'opencv_over_native_{name}': ratio})
        results.update({f'native_peak_mib_{name}': peaks[0], f'opencv_peak_mib_{name}': peaks[1]})
    if args.json:
        with atomic_write(args.json, 'w') as file:
            json.dump(results, file, indent=2)


if __name__ == '__main__':
    main()
