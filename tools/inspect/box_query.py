"""What in another view is like the object in a box? Heat maps over P2 to P5 (paper, Figure 6).

Example: python tools/inspect/box_query.py CONFIG CHECKPOINT --annotations instances_val.json --images val/ --out q.png
tools/inspect/pointing.py puts a number on it. Leave CHECKPOINT out for random weights.
"""

import argparse

from ccop_mm.errors import exit_on_input_error
from ccop_mm.evaluation import load_model
from ccop_mm.evaluation.annotated_photos import read_annotated_photos
from ccop_mm.evaluation.arguments import add_probe_arguments
from ccop_mm.evaluation.feature_maps import PYRAMID, STRIDES
from ccop_mm.evaluation.object_features import to_device
from ccop_mm.visualization import check_figure_path, collect_box_queries, draw_box_queries


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_probe_arguments(parser)
    parser.add_argument('--out', required=True, help='figure to write, *.png or *.svg')
    parser.add_argument('--num', type=int, default=4, help='number of objects (default: %(default)s)')
    parser.add_argument('--levels', nargs='+', choices=STRIDES, default=PYRAMID, help='maps (default: P2 P3 P4 P5)')
    parser.add_argument('--size', type=int, default=224, help='side of a view in pixels (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of photos, views and random weights')
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv=None):
    args = parse_args(argv)
    check_figure_path(args.out)
    model = to_device(load_model(args.config, args.checkpoint, args.seed), args.device)
    photos = list(enumerate(read_annotated_photos(args.annotations, args.images)))
    queries = collect_box_queries(model, photos, args.size, args.num, args.seed, tuple(args.levels))
    draw_box_queries(queries, args.out)
    print(f'{len(queries)} objects drawn: {args.out}')


if __name__ == '__main__':
    main()
