"""Trains a model: CCOP pre-training, or a detector initialized from its checkpoint.

Examples:
  python tools/train.py configs/ccop/ccop_r50_fpn_800e_coco.py
  python tools/train.py configs/transfer/mask_rcnn/mask-rcnn_r50-fpn_ccop-800e_1x_coco.py
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# Python does this only for a script that is executed directly, not for one that is imported or run by runpy.
sys.path.append(str(Path(__file__).resolve().parent))
from common_arguments import add_common_arguments, add_training_arguments, config_arguments, limit_busy_waiting


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from a checkpoint; without a value, from the newest readable one in the work directory',
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='start a new run in a work directory that contains checkpoints of an earlier run, and delete these',
    )
    add_training_arguments(parser)
    add_common_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Trains the model."""
    from ccop_mm.engine import launch
    from ccop_mm.engine.work_dir import claim_work_dir

    cfg = launch.load_config(**config_arguments(args))
    with claim_work_dir(cfg, args.resume, args.overwrite):
        launch.set_resume(cfg, args.resume)
        launch.train(cfg, args.overwrite)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    limit_busy_waiting()
    # Imported after parsing, so that --help does not wait for torch.
    from ccop_mm.utils.errors import exit_on_input_error

    exit_on_input_error(run)(args)


if __name__ == '__main__':
    main()
