"""Plots heat maps of the similarity between an object and every cell of another view (paper, Figure 6).

Example:
  python tools/analysis_tools/box_query.py CONFIG CHECKPOINT --annotations instances_val.json --images val/ --out q.png

Without CHECKPOINT the model has random weights. tools/analysis_tools/pointing.py measures the accuracy of these maps.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# Python does this only for a script that is executed directly, not for one that is imported or run by runpy.
sys.path.append(str(Path(__file__).resolve().parent))
from probe_arguments import PYRAMID, STAGES, probe_parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        parents=[probe_parser()],
    )
    parser.add_argument('--out', required=True, help='figure to write (*.png or *.svg)')
    parser.add_argument('--num', type=int, default=4, help='number of objects (default: %(default)s)')
    parser.add_argument(
        '--levels', nargs='+', choices=STAGES + PYRAMID, default=PYRAMID, help='feature maps (default: P2 P3 P4 P5)'
    )
    parser.add_argument('--size', type=int, default=224, help='side of a view in pixels (default: %(default)s)')
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='random seed of the choice of images, the views and random weights (default: %(default)s)',
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Computes the similarity maps and writes the figure."""
    from ccop_mm.evaluation import load_model
    from ccop_mm.utils.coco_json import read_annotated_images
    from ccop_mm.utils.model import to_device
    from ccop_mm.visualization import check_figure_path, collect_box_queries, plot_box_queries

    check_figure_path(args.out)
    model = to_device(load_model(args.config, args.checkpoint, args.seed), args.device)
    images = list(enumerate(read_annotated_images(args.annotations, args.images)))
    queries = collect_box_queries(model, images, args.size, args.num, args.seed, args.levels)
    plot_box_queries(queries, args.out)
    print(f'{len(queries)} objects plotted: {args.out}')


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    # Imported after parsing, so that --help does not wait for torch.
    from ccop_mm.utils.errors import exit_on_input_error

    exit_on_input_error(run)(args)


if __name__ == '__main__':
    main()
