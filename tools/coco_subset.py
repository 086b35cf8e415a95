"""Writes a seeded part of a COCO json: the same images on every machine.

python tools/coco_subset.py data/coco/annotations/instances_train2017.json --percent 10 \\
    --out data/coco/annotations/instances_train2017_10pct-seed0.json
"""

import argparse
from pathlib import Path

from ccop_mm.datasets.coco_subset import write_subset
from ccop_mm.errors import exit_on_input_error


def parse_args():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description='Write a seeded part of a COCO json')
    parser.add_argument('annotations', type=Path, help='COCO json')
    parser.add_argument('--out', type=Path, required=True, metavar='JSON', help='file to write')
    parser.add_argument('--percent', type=float, default=10, help='share of the images (default: 10)')
    parser.add_argument('--seed', type=int, default=0, help='another seed, another part (default: 0)')
    return parser.parse_args()


@exit_on_input_error
def main():
    """Runs the tool."""
    args = parse_args()
    images, annotations = write_subset(args.annotations, args.out, args.percent, args.seed)
    print(f'{args.out}: {images} images, {annotations} annotations ({args.percent:g} %, seed {args.seed})')


if __name__ == '__main__':
    main()
