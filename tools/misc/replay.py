"""Replays a training step with a non-finite loss and reports the images and the module that cause it.

Example:
  python tools/misc/replay.py work_dirs/NAME/nonfinite_iter_N_rank_R.pth

If several ranks wrote a dump, pass all of them. Exit code 0: at least one dump reproduces the loss; 1: none does.
"""

import argparse
import sys
from collections.abc import Sequence


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('dump', nargs='+', help='dump file in the work directory of the stopped run')
    parser.add_argument('--device', help='device, e.g. cpu (default: device type of the run, if available)')
    parser.add_argument(
        '--import',
        dest='imports',
        action='append',
        default=[],
        metavar='MODULE',
        help="user module in the run's custom_imports that may be imported; may be repeated",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Replays all dumps; returns the exit code."""
    from ccop_mm.debug.replay import replay

    reports = []
    for path in args.dump:
        reports.append(replay(path, args.device, args.imports))
        print(reports[-1])
    return 0 if any(report.reproduced for report in reports) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool."""
    args = parse_args(argv)
    # Imported after parsing, so that --help does not wait for torch.
    from ccop_mm.utils.errors import exit_on_input_error

    return exit_on_input_error(run)(args)


if __name__ == '__main__':
    sys.exit(main())
