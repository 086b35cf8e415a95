"""Writes images with their proposals to a directory, one JPEG per image.

Example:
  python tools/misc/browse_proposals.py proposals.npz --images data/my_images --out browse/
"""

import argparse
import sys
from collections.abc import Sequence


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('proposals', help='proposals file written by tools/propose.py')
    parser.add_argument('--images', required=True, help='root folder of the images of the proposals file')
    parser.add_argument('--out', required=True, help='folder to write to')
    parser.add_argument('--num', type=int, default=20, help='number of images, chosen at random (default: %(default)s)')
    parser.add_argument(
        '--boxes', type=int, default=12, help='maximum number of boxes per image (default: %(default)s)'
    )
    parser.add_argument(
        '--annotations', help='COCO annotation file whose boxes are drawn as well, as thick white lines'
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='random seed of the choice of images (default: %(default)s)'
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Writes the images."""
    from ccop_mm.proposals import ProposalStore
    from ccop_mm.visualization import browse_proposals

    store = ProposalStore.load(args.proposals)
    written, reasons = browse_proposals(store, args.images, args.out, args.num, args.boxes, args.seed, args.annotations)
    for reason in reasons:
        print(f'skipped: {reason}', file=sys.stderr)
    print(f'{len(written)} images written: {args.out}')


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    # Imported after parsing, so that --help does not wait for torch.
    from ccop_mm.utils.errors import exit_on_input_error

    exit_on_input_error(run)(args)


if __name__ == '__main__':
    main()
