"""Draws photos with their proposals into a folder, a JPEG each.

Example: python tools/browse_proposals.py proposals.npz --images photos/ --out browse/
"""

import argparse
import sys

from ccop_mm.errors import exit_on_input_error
from ccop_mm.proposals import ProposalStore
from ccop_mm.visualization import browse


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('proposals', help='file that tools/propose.py wrote')
    parser.add_argument('--images', required=True, help='folder that its file names are relative to')
    parser.add_argument('--out', required=True, help='folder to write to')
    parser.add_argument('--num', type=int, default=20, help='photos, chosen at random (%(default)s)')
    parser.add_argument('--boxes', type=int, default=12, help='at most so many of each (%(default)s)')
    parser.add_argument('--annotations', help='COCO json whose boxes are drawn too, thick and white')
    parser.add_argument('--seed', type=int, default=0, help='seed of the choice (%(default)s)')
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv=None):
    args = parse_args(argv)
    store = ProposalStore.load(args.proposals)
    written, reasons = browse(store, args.images, args.out, args.num, args.boxes, args.seed, args.annotations)
    for reason in reasons:
        print(f'not drawn: {reason}', file=sys.stderr)
    print(f'{len(written)} photos drawn: {args.out}')


if __name__ == '__main__':
    main()
