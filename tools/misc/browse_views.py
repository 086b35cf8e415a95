"""Plots the network input: both views of some images, matched boxes in one color, and jittered key boxes.

Example:
  python tools/misc/browse_views.py my_ccop.py --out views.png --progress 0.5
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# Python does this only for a script in tools/ itself.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from common_arguments import add_common_arguments, config_arguments


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('config', help='pre-training config')
    parser.add_argument('--out', required=True, help='figure to write (*.png or *.svg)')
    parser.add_argument('--num', type=int, default=4, help='number of images, chosen at random (default: %(default)s)')
    parser.add_argument('--index', type=int, nargs='+', help='indices of images in the dataset, instead of --num')
    parser.add_argument('--epoch', type=int, default=0, help='epoch of the views, starting at 0 (default: %(default)s)')
    parser.add_argument(
        '--progress', type=float, default=0.5, help='fraction of training completed (default: %(default)s)'
    )
    parser.add_argument('--seed', type=int, default=0, help='random seed of the run (default: %(default)s)')
    add_common_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Writes the figure."""
    from ccop_mm.engine import launch
    from ccop_mm.visualization import plot_views

    cfg = launch.load_config(**config_arguments(args))
    plot_views(cfg, args.index, args.num, args.progress, args.epoch, args.seed, args.out)
    print(f'views plotted: {args.out}')


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    # Imported after parsing, so that --help does not wait for torch.
    from ccop_mm.utils.errors import exit_on_input_error

    exit_on_input_error(run)(args)


if __name__ == '__main__':
    main()
