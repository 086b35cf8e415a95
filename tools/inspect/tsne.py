"""Annotated objects as points, the alike close together: backbone features and embeddings (paper, Figure 5).

Example: python tools/inspect/tsne.py CONFIG CHECKPOINT --annotations instances_val.json --images val/ --out tsne.png
Leave CHECKPOINT out for random weights, the picture to compare with.
"""

import argparse

from ccop_mm.errors import exit_on_input_error
from ccop_mm.evaluation import extract_object_features, load_model
from ccop_mm.evaluation.arguments import add_probe_arguments
from ccop_mm.evaluation.feature_maps import STAGES
from ccop_mm.evaluation.knn_report import FEATURES
from ccop_mm.visualization import check_figure_path, class_names, draw_tsne, project


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_probe_arguments(parser)
    parser.add_argument('--out', required=True, help='figure to write, *.png or *.svg')
    parser.add_argument(
        '--stage', choices=STAGES, default='C5', help='where the backbone feature is pooled (default: %(default)s)'
    )
    parser.add_argument('--size', type=int, default=224, help='short side of a photo in pixels (default: %(default)s)')
    parser.add_argument('--max-objects', type=int, default=2000, help='about so many objects (default: %(default)s)')
    parser.add_argument('--perplexity', type=float, default=30, help="t-SNE's (default: %(default)s)")
    parser.add_argument('--batch-size', type=int, default=16, help='photos a batch (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of objects, of t-SNE and of random weights')
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv=None):
    args = parse_args(argv)
    check_figure_path(args.out)
    features = extract_object_features(
        load_model(args.config, args.checkpoint, args.seed),
        args.annotations,
        args.images,
        size=args.size,
        batch_size=args.batch_size,
        device=args.device,
        stage=STAGES.index(args.stage),
        max_objects=args.max_objects,
        seed=args.seed,
    )
    titles = {name: f'{title}, {args.stage}' if name == 'backbone' else title for name, title in FEATURES.items()}
    panels = {
        titles[name]: project(features[name].numpy(), args.seed, args.perplexity) for name in titles if name in features
    }
    draw_tsne(panels, features['labels'].numpy(), class_names(args.annotations), args.out)
    print(f'{len(features["labels"])} objects drawn: {args.out}')


if __name__ == '__main__':
    main()
