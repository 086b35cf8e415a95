"""Evaluates a detector's checkpoint.

Example:
  python tools/test.py configs/transfer/mask_rcnn/mask-rcnn_r50-fpn_ccop-800e_1x_coco.py CHECKPOINT --results detections
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

# Python does this only for a script that is executed directly, not for one that is imported or run by runpy.
sys.path.append(str(Path(__file__).resolve().parent))
from common_arguments import add_common_arguments, config_arguments, limit_busy_waiting


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or URL of the detector')
    parser.add_argument('--out', type=Path, metavar='JSON', help='also write the metrics to this file')
    parser.add_argument(
        '--results',
        type=Path,
        metavar='PREFIX',
        help='write the detections in COCO format to PREFIX.bbox.json and PREFIX.segm.json',
    )
    add_common_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Evaluates the checkpoint."""
    from ccop_mm.engine import launch
    from ccop_mm.utils.file_io import atomic_write

    metrics = launch.test(launch.load_config(**config_arguments(args)), args.checkpoint, args.results)
    if args.out:
        with atomic_write(args.out, 'w') as file:
            json.dump(metrics, file, indent=2)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    limit_busy_waiting()
    # Imported after parsing, so that --help does not wait for torch.
    from ccop_mm.utils.errors import exit_on_input_error

    exit_on_input_error(run)(args)


if __name__ == '__main__':
    main()
