"""Prints a table of AP, AP50 and AP75 from the work directories of detectors, one row per run.

Example:
  python tools/analysis_tools/summarize.py work_dirs/mask-rcnn_r50-fpn_*_1x_coco

A row shows the last evaluation of its run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='work directories of tools/train.py')
    parser.add_argument(
        '--style',
        choices=['text', 'markdown', 'csv'],
        default='text',
        help='format of the table (default: %(default)s)',
    )
    parser.add_argument('--out', type=Path, metavar='FILE', help='also write the table to this file')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Prints the table."""
    from ccop_mm.evaluation.transfer_table import format_table, read_run
    from ccop_mm.utils.file_io import atomic_write

    table = format_table([read_run(work_dir) for work_dir in args.work_dirs], args.style)
    print(table)
    if args.out:
        with atomic_write(args.out, 'w') as file:
            file.write(f'{table}\n')


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    # Imported after parsing, so that --help does not wait for torch.
    from ccop_mm.utils.errors import exit_on_input_error

    exit_on_input_error(run)(args)


if __name__ == '__main__':
    main()
