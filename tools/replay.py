"""Replays a step whose loss was not finite: which image alone is enough, and in which module it begins.

Example: python tools/replay.py work_dirs/NAME/nonfinite_iter_N_rank_R.pth
Several ranks may have written one each; name them all. Exit code 0: reproduced by at least one; 1: by none.
"""

import argparse
import sys

from ccop_mm.engine.replay import replay
from ccop_mm.errors import exit_on_input_error


def parse_args(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('dump', nargs='+', help='what a stopped run wrote into its work folder')
    parser.add_argument('--device', help="e.g. cpu; the run's kind of device by default, if there is one")
    parser.add_argument(
        '--import',
        dest='imports',
        action='append',
        default=[],
        metavar='MODULE',
        help="a module of your own that the run's custom_imports names; may be repeated",
    )
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv=None):
    """Runs the tool."""
    args = parse_args(argv)
    reports = []
    for path in args.dump:
        reports.append(replay(path, args.device, args.imports))
        print(reports[-1])
    return 0 if any(report.reproduced for report in reports) else 1


if __name__ == '__main__':
    sys.exit(main())
