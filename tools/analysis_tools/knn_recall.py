"""Measures the object kNN recall of a pre-trained model on annotated images (paper, Table 9).

Example:
  python tools/analysis_tools/knn_recall.py CONFIG CHECKPOINT --annotations instances_val.json --images val/

Without CHECKPOINT the model has random weights, the baseline to compare with.
"""

import argparse
import json
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
    parser.add_argument(
        '--stage', choices=STAGES, default='C5', help='backbone stage to pool features from (default: %(default)s)'
    )
    parser.add_argument(
        '--max-objects', type=int, help='use a random subset of the images with about this many objects'
    )
    parser.add_argument('--size', type=int, default=224, help='short side of an image in pixels (default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=16, help='images per batch (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='random seed of random weights (default: %(default)s)')
    parser.add_argument('--json', help='also write the results to this file')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Measures and prints the recall."""
    from ccop_mm.evaluation import extract_object_features, format_knn_report, knn_report, load_model
    from ccop_mm.utils.file_io import atomic_write

    model = load_model(args.config, args.checkpoint, args.seed)
    features = extract_object_features(
        model,
        args.annotations,
        args.images,
        size=args.size,
        batch_size=args.batch_size,
        device=args.device,
        stage=args.stage,
        max_objects=args.max_objects,
    )
    report = knn_report(features)
    print(format_knn_report(report))
    if args.json:
        with atomic_write(args.json, 'w') as file:
            json.dump(report, file, indent=2)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    # Imported after parsing, so that --help does not wait for torch.
    from ccop_mm.utils.errors import exit_on_input_error

    exit_on_input_error(run)(args)


if __name__ == '__main__':
    main()
