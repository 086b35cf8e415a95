"""Measures the pointing game accuracy of a pre-trained model on annotated images: the paper's Figure 6 as a number.

The feature of an object in one view is compared with every cell of another view. The accuracy is the fraction of
objects whose most similar cell lies inside the same object's box. It changes within minutes of pre-training, long
before kNN recall does.

Examples:
  python tools/analysis_tools/pointing.py CONFIG --annotations instances_val.json --images val/ --json random.json
  python tools/analysis_tools/pointing.py CONFIG CHECKPOINT --annotations instances_val.json --images val/ \\
      --against random.json

Without CHECKPOINT the model has random weights, the baseline to compare with.
"""

import argparse
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
    parser.add_argument('--size', type=int, default=224, help='side of a view in pixels (default: %(default)s)')
    parser.add_argument('--repeats', type=int, default=1, help='pairs of views per image (default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=16, help='pairs of views per batch (default: %(default)s)')
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='random seed of random weights; the views do not depend on it (default: %(default)s)',
    )
    parser.add_argument('--json', help='also write the results, including the score of every query, to this file')
    parser.add_argument(
        '--against',
        metavar='JSON',
        help='file written with --json for another model: also print the paired differences',
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Measures and prints the accuracy."""
    from ccop_mm.evaluation import (
        format_pointing_report,
        load_model,
        measure_pointing_accuracy,
        read_pointing_result,
        write_pointing_result,
    )

    other = read_pointing_result(args.against) if args.against else None
    model = load_model(args.config, args.checkpoint, args.seed)
    result = measure_pointing_accuracy(
        model,
        args.annotations,
        args.images,
        size=args.size,
        batch_size=args.batch_size,
        device=args.device,
        repeats=args.repeats,
    )
    print(format_pointing_report(result.report()))
    if args.json:
        write_pointing_result(result, args.json)
    if other is not None:
        print(f'difference from {args.against} in percentage points (95 % interval):')
        for level in [level for level in result.hits if level in other.hits]:
            gain, low, high = (100 * value for value in result.difference(other, level))
            print(f'{level:>9}{gain:>+10.1f}   {low:+.1f} to {high:+.1f}')


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    # Imported after parsing, so that --help does not wait for torch.
    from ccop_mm.utils.errors import exit_on_input_error

    exit_on_input_error(run)(args)


if __name__ == '__main__':
    main()
