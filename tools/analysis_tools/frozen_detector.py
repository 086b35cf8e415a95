"""Measures the box AP of a light detection head on the frozen features of a pre-trained model.

A few minutes of training the head replace hours of fine-tuning a detector: a probe of how much of the work of a
detector the features have done already, not the AP that fine-tuning reaches. All features are kept in memory.

Examples:
  python tools/analysis_tools/frozen_detector.py CONFIG --train-annotations instances_train.json \\
      --train-images train/ --annotations instances_val.json --images val/ --seeds 0 1 2 --json random.json
  python tools/analysis_tools/frozen_detector.py CONFIG CHECKPOINT --train-annotations instances_train.json \\
      --train-images train/ --annotations instances_val.json --images val/ --seeds 0 1 2 --against random.json

Without CHECKPOINT the model has random weights, the baseline to compare with; each seed then has weights of its own.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

# Python does this only for a script that is executed directly, not for one that is imported or run by runpy.
sys.path.append(str(Path(__file__).resolve().parent))
from probe_arguments import probe_parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        parents=[probe_parser()],
    )
    parser.add_argument('--train-annotations', required=True, help='COCO annotation file to train the head on')
    parser.add_argument('--train-images', required=True, help='root folder of the images to train the head on')
    parser.add_argument(
        '--features',
        choices=['backbone', 'neck'],
        default='backbone',
        help='features of the head: C3 to C5 of the backbone or P3 to P5 of the neck (default: %(default)s)',
    )
    parser.add_argument(
        '--tasks',
        nargs='+',
        choices=['objects', 'classes'],
        default=['objects', 'classes'],
        help='AP with all boxes as one class, AP of the classes (default: both)',
    )
    parser.add_argument('--size', type=int, default=224, help='short side of an image in pixels (default: %(default)s)')
    parser.add_argument(
        '--seeds',
        type=int,
        nargs='+',
        default=[0],
        help='random seeds of the head and of random weights; several give an interval (default: 0)',
    )
    parser.add_argument('--epochs', type=int, help='epochs of training the head (default: 8, more for few images)')
    parser.add_argument('--no-flip', action='store_true', help='train without mirrored images, in half the memory')
    parser.add_argument('--max-train-images', type=int, help='train on a random subset of this many images')
    parser.add_argument('--max-images', type=int, help='measure AP on a random subset of this many images')
    parser.add_argument(
        '--max-memory', type=float, default=8, help='maximum memory for features in GB (default: %(default)s)'
    )
    parser.add_argument('--batch-size', type=int, default=32, help='images per batch (default: %(default)s)')
    parser.add_argument('--json', help='also write the results to this file')
    parser.add_argument(
        '--against', metavar='JSON', help='file written with --json for another model: also print the differences'
    )
    parser.add_argument(
        '--detections',
        type=Path,
        metavar='DIR',
        help="also write the detections of each task and seed to this folder, in COCO's format of results",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Trains the heads and prints their AP."""
    from ccop_mm.evaluation import load_model
    from ccop_mm.evaluation.frozen_detector import check_seeds, measure_frozen_detector, read_frozen_detector_data
    from ccop_mm.evaluation.frozen_detector_head import HeadRecipe
    from ccop_mm.evaluation.frozen_detector_report import (
        format_difference,
        format_frozen_detector_report,
        merge_results,
        read_report,
        write_report,
    )
    from ccop_mm.utils.file_io import atomic_write

    check_seeds(args.seeds)
    other = read_report(args.against) if args.against else None
    recipe = HeadRecipe() if args.epochs is None else HeadRecipe(epochs=args.epochs, min_steps=0)
    data = read_frozen_detector_data(
        args.train_annotations, args.train_images, args.annotations, args.images, args.max_train_images, args.max_images
    )
    # Random weights differ by seed, so their features are computed for each.
    groups = [args.seeds] if args.checkpoint else [[seed] for seed in args.seeds]
    result = merge_results(
        [
            measure_frozen_detector(
                load_model(args.config, args.checkpoint, seeds[0]),
                data,
                size=args.size,
                features=args.features,
                tasks=args.tasks,
                seeds=seeds,
                recipe=recipe,
                flip=not args.no_flip,
                max_memory=args.max_memory,
                batch_size=args.batch_size,
                device=args.device,
            )
            for seeds in groups
        ]
    )
    print(format_frozen_detector_report(result))
    if args.json:
        write_report(result, args.json)
    for task, by_seed in result.detections.items() if args.detections else ():
        for seed, detections in zip(result.seeds, by_seed, strict=True):
            with atomic_write(args.detections / f'{task}-seed{seed}.json', 'w') as file:
                json.dump(detections, file)
    if other is not None:
        print(f'difference from {args.against} in percentage points:')
        print(format_difference(result, other))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    # Imported after parsing, so that --help does not wait for torch.
    from ccop_mm.utils.errors import exit_on_input_error

    exit_on_input_error(run)(args)


if __name__ == '__main__':
    main()
