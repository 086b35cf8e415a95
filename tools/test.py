"""Evaluates a detector's checkpoint.

python tools/test.py configs/transfer/mask_rcnn/mask-rcnn_r50-fpn_ccop-800e_1x_coco.py CHECKPOINT --results detections
"""

import argparse
import json
from pathlib import Path

from ccop_mm.engine import launch
from ccop_mm.errors import exit_on_input_error
from ccop_mm.fileio import atomic_write


def parse_args():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description='Test a detector')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file of the detector')
    parser.add_argument('--out', type=Path, metavar='JSON', help='write the metrics to this file as well')
    parser.add_argument(
        '--results',
        type=Path,
        metavar='PREFIX',
        help='write the detections as COCO json: PREFIX.bbox.json, PREFIX.segm.json',
    )
    launch.add_common_arguments(parser)
    return parser.parse_args()


@exit_on_input_error
def main():
    """Runs the tool."""
    args = parse_args()
    metrics = launch.test(launch.load_config(args), args.checkpoint, args.results)
    if args.out:
        with atomic_write(args.out, 'w') as file:
            json.dump(metrics, file, indent=2)


if __name__ == '__main__':
    main()
