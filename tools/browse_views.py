"""What the network sees: both views of some photos, matched boxes in one color, and jittered key boxes.

Example: python tools/browse_views.py my_ccop.py --out views.png --progress 0.5
"""

import argparse

from ccop_mm.engine import launch
from ccop_mm.errors import exit_on_input_error
from ccop_mm.visualization import draw_views


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('config', help='pre-training config')
    parser.add_argument('--out', required=True, help='figure to write, *.png or *.svg')
    parser.add_argument('--num', type=int, default=4, help='photos, drawn at random (default: %(default)s)')
    parser.add_argument('--index', type=int, nargs='+', help='numbers of the photos in the data set, in their place')
    parser.add_argument('--epoch', type=int, default=0, help='epoch of the views, from 0 (default: %(default)s)')
    parser.add_argument('--progress', type=float, default=0.5, help='fraction of training done (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the run (default: %(default)s)')
    launch.add_common_arguments(parser)
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv=None):
    args = parse_args(argv)
    draw_views(launch.load_config(args), args.index, args.num, args.progress, args.epoch, args.seed, args.out)
    print(f'views drawn: {args.out}')


if __name__ == '__main__':
    main()
