"""Noise of Eq. 7 for a step: drawn from the tightened range, beside plain rejection, in turn in one run.

python benchmarks/jitter.py [--json FILE]
"""

import argparse
import json
import statistics
import time

import torch

from ccop_mm.fileio import atomic_write
from ccop_mm.models.box_jitter import interpolate, noise_iou, valid_noise

#: 256 photos of 12 objects, 10 candidates each: a step of the paper's recipe.
OBJECTS, CANDIDATES = 3072, 10


def plain_rejection(count, zeta, beta, acceptance, generator):
    """The obvious way: draw from the whole range until enough are valid; it is told how many draws that takes."""
    kept, have = [], 0
    while have < count:
        noise = (torch.rand(int(1.05 * (count - have) / acceptance), 4, generator=generator) * 2 - 1) * zeta
        kept.append(noise[noise_iou(noise) >= beta])
        have += len(kept[-1])
    return torch.cat(kept)[:count]


def milliseconds(function, *args):
    """Wall time of one call."""
    started = time.perf_counter()
    function(*args)
    return 1000 * (time.perf_counter() - started)


def parse_args(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument('--json', help='also write the figures to this file')
    return parser.parse_args(argv)


def main():
    """Prints a table; the ratio is the median of those measured next to each other."""
    args = parse_args()
    torch.set_num_threads(1)
    generator, count = torch.Generator().manual_seed(0), OBJECTS * CANDIDATES
    figures = {}
    print(f'{OBJECTS} objects x {CANDIDATES}, one thread, median of {args.repeats}')
    print('  t   tightened ms   plain ms   plain / tightened')
    for progress in (0.0, 0.5, 1.0):
        zeta, beta = interpolate((0.3, 1.0), progress), interpolate((0.8, 0.3), progress)
        _, acceptance = valid_noise(count, zeta, beta, generator=generator)
        pairs = []
        for _ in range(args.repeats):
            ours = milliseconds(lambda z, b: valid_noise(count, z, b, generator=generator), zeta, beta)
            pairs.append((ours, milliseconds(plain_rejection, count, zeta, beta, acceptance, generator)))
        tightened, plain = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(theirs / ours for ours, theirs in pairs)
        print(f'{progress:4.1f} {tightened:13.1f} {plain:10.1f} {ratio:19.1f}')
        figures.update({f'tightened_ms_{progress}': tightened, f'plain_over_tightened_{progress}': ratio})
    if args.json:
        with atomic_write(args.json, 'w') as file:
            json.dump(figures, file, indent=2)


if __name__ == '__main__':
    main()
