"""Object kNN recall of a pre-trained network on annotated photos (paper, Table 9).

Example: python tools/inspect/knn_recall.py CONFIG CHECKPOINT --annotations instances_val.json --images val/
Leave CHECKPOINT out for random weights, the number to compare with.
"""

import argparse
import json

from ccop_mm.errors import exit_on_input_error
from ccop_mm.evaluation import extract_object_features, format_knn_report, knn_report, load_model
from ccop_mm.evaluation.arguments import add_probe_arguments
from ccop_mm.evaluation.feature_maps import STAGES
from ccop_mm.fileio import atomic_write


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_probe_arguments(parser)
    parser.add_argument(
        '--stage', choices=STAGES, default='C5', help='where the backbone feature is pooled (default: %(default)s)'
    )
    parser.add_argument('--max-objects', type=int, help='use a random subset of the photos with about so many objects')
    parser.add_argument('--size', type=int, default=224, help='short side of a photo in pixels (default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=16, help='photos a batch (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of random weights (default: %(default)s)')
    parser.add_argument('--json', help='also write the numbers to this file')
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv=None):
    args = parse_args(argv)
    model = load_model(args.config, args.checkpoint, args.seed)
    features = extract_object_features(
        model,
        args.annotations,
        args.images,
        size=args.size,
        batch_size=args.batch_size,
        device=args.device,
        stage=STAGES.index(args.stage),
        max_objects=args.max_objects,
    )
    report = knn_report(features)
    print(format_knn_report(report))
    if args.json:
        with atomic_write(args.json, 'w') as file:
            json.dump(report, file, indent=2)


if __name__ == '__main__':
    main()
