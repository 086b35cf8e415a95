"""Plots a pre-training run on one page: losses, similarities, collapse metrics, queue age and probe results.

Example:
  python tools/analysis_tools/training_report.py work_dirs/my_ccop --out report.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('work_dir', help='work directory of tools/train.py')
    parser.add_argument('--out', required=True, help='figure to write (*.png or *.svg)')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Writes the figure."""
    from ccop_mm.utils.train_log import read_training_log
    from ccop_mm.visualization import plot_training_report

    log = read_training_log(args.work_dir)
    plot_training_report(log, Path(args.work_dir).resolve().name, args.out)
    print(f'{max(int(steps[-1]) for steps, _ in log.values())} iterations plotted: {args.out}')


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    # Imported after parsing, so that --help does not wait for torch.
    from ccop_mm.utils.errors import exit_on_input_error

    exit_on_input_error(run)(args)


if __name__ == '__main__':
    main()
