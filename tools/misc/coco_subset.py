"""Writes a seeded random subset of a COCO json. The same seed selects the same images on every machine.

Example:
  python tools/misc/coco_subset.py data/coco/annotations/instances_train2017.json --percent 10 \\
      --out data/coco/annotations/instances_train2017_10pct-seed0.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('annotations', type=Path, help='COCO json')
    parser.add_argument('--out', type=Path, required=True, metavar='JSON', help='file to write')
    parser.add_argument('--percent', type=float, default=10, help='percentage of images to keep (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='random seed of the subset (default: %(default)s)')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Writes the subset."""
    from ccop_mm.datasets.coco_subset import write_random_subset

    images, annotations = write_random_subset(args.annotations, args.out, args.percent, args.seed)
    print(f'{args.out}: {images} images, {annotations} annotations ({args.percent:g} %, seed {args.seed})')


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    # Imported after parsing, so that --help does not wait for torch.
    from ccop_mm.utils.errors import exit_on_input_error

    exit_on_input_error(run)(args)


if __name__ == '__main__':
    main()
