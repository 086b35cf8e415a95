"""Box-query pointing of a pre-trained network on annotated photos: the paper's Figure 6 as a number.

An object's feature of one view is compared with every cell of another view: how often does the best cell lie in the
same object's box? It moves after minutes of pre-training, long before kNN recall does.

Example: python tools/inspect/pointing.py CONFIG CHECKPOINT --annotations instances_val.json --images val/ --size 224
Leave CHECKPOINT out for random weights, the number to compare with; --against compares with an earlier --json.
"""

import argparse

from ccop_mm.errors import exit_on_input_error
from ccop_mm.evaluation import (
    format_pointing_report,
    load_model,
    measure_pointing,
    read_pointing_result,
    write_pointing_result,
)
from ccop_mm.evaluation.arguments import add_probe_arguments


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_probe_arguments(parser)
    parser.add_argument('--size', type=int, default=224, help='side of a view in pixels (default: %(default)s)')
    parser.add_argument('--repeats', type=int, default=1, help='pairs of views a photo (default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=16, help='photos a batch (default: %(default)s)')
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of random weights; the views do not depend on it (default: 0)'
    )
    parser.add_argument('--json', help='also write the numbers, and the hits of every object, to this file')
    parser.add_argument('--against', help="another model's --json: also print the differences, object by object")
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv=None):
    args = parse_args(argv)
    other = read_pointing_result(args.against) if args.against else None
    model = load_model(args.config, args.checkpoint, args.seed)
    result = measure_pointing(
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
        print(f'better than {args.against} by, in points (95 % interval):')
        for level in [level for level in result.hits if level in other.hits]:
            print(
                '{:>9}{:>+10.1f}   {:+.1f} to {:+.1f}'.format(
                    level, *(100 * x for x in result.difference(other, level))
                )
            )


if __name__ == '__main__':
    main()
