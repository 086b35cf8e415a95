"""A pre-training run as one page of curves: losses, similarities, signs of collapse, queue age, probes.

Example: python tools/inspect/training_report.py work_dirs/my_ccop --out report.png
"""

import argparse
from pathlib import Path

from ccop_mm.errors import exit_on_input_error
from ccop_mm.visualization import draw_training_report, read_training_log


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('work_dir', help='folder that tools/train.py wrote to')
    parser.add_argument('--out', required=True, help='figure to write, *.png or *.svg')
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv=None):
    args = parse_args(argv)
    log = read_training_log(args.work_dir)
    draw_training_report(log, Path(args.work_dir).resolve().name, args.out)
    print(f'{max(int(steps[-1]) for steps, _ in log.values())} iterations drawn: {args.out}')


if __name__ == '__main__':
    main()
