"""Times the sampling of box noise (Eq. 7) for one training step, compared with plain rejection sampling.

python benchmarks/jitter.py [--json FILE]

ccop_mm rejects from a range tightened by the IoU threshold. Both methods run alternately on one thread; each ratio is
the median of the ratios of consecutive calls.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from ccop_mm.models.box_jitter import interpolate, noise_iou, sample_valid_noise
from ccop_mm.utils.file_io import atomic_write

#: 256 images with 12 objects, 10 candidates each: a step of the paper's recipe.
OBJECTS, CANDIDATES = 3072, 10


def plain_rejection(
    count: int, zeta: float, beta: float, acceptance: float, generator: torch.Generator
) -> torch.Tensor:
    """Samples noise from the whole range until ``count`` samples are valid; returns ``(count, 4)``.

    Args:
        count (int): Number of valid samples.
        zeta (float): Half-width of the uniform noise.
        beta (float): Smallest valid IoU.
        acceptance (float): Probability that a sample is valid, which determines the number of samples to try.
        generator (torch.Generator): Random generator.
    """
    accepted, num_accepted = [], 0
    while num_accepted < count:
        noise = (torch.rand(int(1.05 * (count - num_accepted) / acceptance), 4, generator=generator) * 2 - 1) * zeta
        accepted.append(noise[noise_iou(noise) >= beta])
        num_accepted += len(accepted[-1])
    return torch.cat(accepted)[:count]


def milliseconds(function: Callable, *args: object) -> float:
    """Returns the wall time of one call."""
    start = time.perf_counter()
    function(*args)
    return 1000 * (time.perf_counter() - start)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=15, help='measurements per method (default: %(default)s)')
    parser.add_argument('--json', help='also write the results to this file')
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    generator, count = torch.Generator().manual_seed(0), OBJECTS * CANDIDATES
    results = {}
    print(f'{OBJECTS} objects x {CANDIDATES} candidates, one thread, median of {args.repeats}')
    print('  t   tightened ms   plain ms   plain / tightened')
    for progress in (0.0, 0.5, 1.0):
        zeta, beta = interpolate((0.3, 1.0), progress), interpolate((0.8, 0.3), progress)
        _, acceptance = sample_valid_noise(count, zeta, beta, generator=generator)
        pairs = []
        for _ in range(args.repeats):
            ours = milliseconds(lambda z, b: sample_valid_noise(count, z, b, generator=generator), zeta, beta)
            pairs.append((ours, milliseconds(plain_rejection, count, zeta, beta, acceptance, generator)))
        tightened, plain = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(theirs / ours for ours, theirs in pairs)
        print(f'{progress:4.1f} {tightened:13.1f} {plain:10.1f} {ratio:19.1f}')
        results.update({f'tightened_ms_{progress}': tightened, f'plain_over_tightened_{progress}': ratio})
    if args.json:
        with atomic_write(args.json, 'w') as file:
            json.dump(results, file, indent=2)


if __name__ == '__main__':
    main()
