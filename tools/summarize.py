"""Makes a table of AP, AP50 and AP75 from the work folders of detectors.

python tools/summarize.py work_dirs/mask-rcnn_r50-fpn_*_1x_coco
"""

import argparse
from pathlib import Path

from ccop_mm.errors import exit_on_input_error
from ccop_mm.evaluation.transfer_table import format_table, read_run
from ccop_mm.fileio import atomic_write


def parse_args():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description='The table of finished transfers: last evaluation of each run')
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='folders that tools/train.py wrote to')
    parser.add_argument('--style', choices=['text', 'markdown', 'csv'], default='text', help='default: text')
    parser.add_argument('--out', type=Path, metavar='FILE', help='write the table to this file as well')
    return parser.parse_args()


@exit_on_input_error
def main():
    """Runs the tool."""
    args = parse_args()
    table = format_table([read_run(work_dir) for work_dir in args.work_dirs], args.style)
    print(table)
    if args.out:
        with atomic_write(args.out, 'w') as file:
            file.write(f'{table}\n')


if __name__ == '__main__':
    main()
