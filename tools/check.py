"""Checks a config, its data and its weights without starting a run (docs/checks.md).

Prints one line per problem and a summary. The exit code is 2 if there is an ERROR, with which the run would not start.

Examples:
  python tools/check.py configs/ccop/ccop_r50_fpn_800e_coco.py                     # what tools/train.py checks
  python tools/check.py configs/ccop/ccop_r50_fpn_800e_coco.py --resume            # what tools/train.py --resume checks
  python tools/check.py configs/transfer/mask_rcnn/mask-rcnn_r50-fpn_ccop-800e_1x_coco.py CHECKPOINT    # tools/test.py
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# Python does this only for a script that is executed directly, not for one that is imported or run by runpy.
sys.path.append(str(Path(__file__).resolve().parent))
from common_arguments import add_common_arguments, add_training_arguments, config_arguments


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        'checkpoint', nargs='?', help='checkpoint file or URL of a detector: check a test instead of a training'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='check a training that resumes; without a value, from the newest checkpoint in the work directory',
    )
    add_training_arguments(parser)
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.checkpoint and args.resume:
        parser.error('a test does not resume: pass either a checkpoint or --resume')
    return args


def run(args: argparse.Namespace) -> int:
    """Prints all findings; returns the exit code."""
    from mmengine.logging import MMLogger

    from ccop_mm.engine import launch
    from ccop_mm.engine.work_dir import check_earlier_run
    from ccop_mm.preflight import Report

    MMLogger.get_instance('check', log_level='WARNING')
    options = Report()
    cfg = launch.load_config(**config_arguments(args), report=options)
    if args.checkpoint is None:
        launch.set_resume(cfg, args.resume)
        if not cfg.get('resume'):
            check_earlier_run(cfg)
    report = launch.check(cfg, args.checkpoint)
    report.findings[:0] = options.findings
    for finding in report.findings:
        print(finding)
    print(report.summary)
    return 2 if report.errors else 0


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    # Imported after parsing, so that --help does not wait for torch.
    from ccop_mm.utils.errors import exit_on_input_error

    sys.exit(exit_on_input_error(run)(args))


if __name__ == '__main__':
    main()
