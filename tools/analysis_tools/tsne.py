"""Plots a t-SNE projection of annotated objects: backbone features and embeddings (paper, Figure 5).

Example:
  python tools/analysis_tools/tsne.py CONFIG CHECKPOINT --annotations instances_val.json --images val/ --out tsne.png

Without CHECKPOINT the model has random weights, the baseline to compare with.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# Python does this only for a script that is executed directly, not for one that is imported or run by runpy.
sys.path.append(str(Path(__file__).resolve().parent))
from probe_arguments import STAGES, probe_parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        parents=[probe_parser()],
    )
    parser.add_argument('--out', required=True, help='figure to write (*.png or *.svg)')
    parser.add_argument(
        '--stage', choices=STAGES, default='C5', help='backbone stage to pool features from (default: %(default)s)'
    )
    parser.add_argument('--size', type=int, default=224, help='short side of an image in pixels (default: %(default)s)')
    parser.add_argument(
        '--max-objects',
        type=int,
        default=2000,
        help='use a random subset of the images with about this many objects (default: %(default)s)',
    )
    parser.add_argument('--perplexity', type=float, default=30, help='perplexity of t-SNE (default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=16, help='images per batch (default: %(default)s)')
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='random seed of the subset, t-SNE and random weights (default: %(default)s)',
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Extracts the features, projects them and writes the figure."""
    from ccop_mm.evaluation import extract_object_features, load_model
    from ccop_mm.evaluation.knn_report import FEATURES
    from ccop_mm.utils.coco_json import class_names
    from ccop_mm.visualization import check_figure_path, compute_tsne, plot_tsne

    check_figure_path(args.out)
    features = extract_object_features(
        load_model(args.config, args.checkpoint, args.seed),
        args.annotations,
        args.images,
        size=args.size,
        batch_size=args.batch_size,
        device=args.device,
        stage=args.stage,
        max_objects=args.max_objects,
        seed=args.seed,
    )
    titles = {name: f'{title}, {args.stage}' if name == 'backbone' else title for name, title in FEATURES.items()}
    panels = {
        titles[name]: compute_tsne(features[name].numpy(), args.seed, args.perplexity)
        for name in titles
        if name in features
    }
    plot_tsne(panels, features['labels'].numpy(), class_names(args.annotations), args.out)
    print(f'{len(features["labels"])} objects plotted: {args.out}')


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    # Imported after parsing, so that --help does not wait for torch.
    from ccop_mm.utils.errors import exit_on_input_error

    exit_on_input_error(run)(args)


if __name__ == '__main__':
    main()
