"""Step one: searches photos for boxes that may hold an object, and writes them to one file, by image id.

Example: python tools/propose.py data/photos --out data/proposals.npz
A run that was killed goes on where it was when the same command is repeated.
"""

import argparse
import sys

from ccop_mm.errors import exit_on_input_error
from ccop_mm.proposals import ProposalStore, list_photos
from ccop_mm.proposals.evaluate import evaluate, read_objects
from ccop_mm.proposals.run import Rules, run
from ccop_mm.proposals.search import ENGINES, MODES


def parse_args(argv=None):
    defaults = Rules
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='folder of photos (with subfolders), or COCO json')
    parser.add_argument('--out', required=True, help='file to write, customarily .npz')
    parser.add_argument('--image-root', help="folder of the json's photos; guessed by default")
    parser.add_argument('--mode', choices=MODES, default=defaults.mode, help='selective search strategy (%(default)s)')
    parser.add_argument(
        '--engine',
        choices=ENGINES,
        default=defaults.engine,
        help="ccop_mm's own search, or OpenCV's, which finds the same boxes in several times the time (%(default)s)",
    )
    parser.add_argument('--max-boxes', type=int, default=defaults.max_boxes, help='boxes kept a photo (%(default)s)')
    parser.add_argument('--min-area', type=float, default=defaults.min_area, help='in square pixels (%(default)s)')
    parser.add_argument('--max-aspect', type=float, default=defaults.max_aspect, help='longer by shorter (%(default)s)')
    parser.add_argument('--merge-iou', type=float, default=defaults.merge_iou, help='merge above it (%(default)s)')
    parser.add_argument('--workers', type=int, help='processes; one for each core by default')
    parser.add_argument('--evaluate', metavar='ANNOTATIONS', help='COCO json to measure recall against')
    parser.add_argument('--skip-bad', action='store_true', help='exit with 0 although photos were skipped')
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv=None):
    args = parse_args(argv)
    photos = list_photos(args.source, args.image_root)
    if args.evaluate:
        read_objects(args.evaluate)  # a fault of this file should not wait until the search is over
    try:
        summary = run(
            photos,
            args.out,
            mode=args.mode,
            engine=args.engine,
            max_boxes=args.max_boxes,
            min_area=args.min_area,
            max_aspect=args.max_aspect,
            merge_iou=args.merge_iou,
            workers=args.workers,
        )
    except KeyboardInterrupt:
        kept = f'finished photos are kept in {args.out}.partial'
        print(f'interrupted: {kept}; repeat the command to go on', file=sys.stderr)
        return 130
    print(summary)
    if args.evaluate:
        for name, value in evaluate(ProposalStore.load(args.out), args.evaluate).items():
            print(f'{name:18s} {value:.3f}' if isinstance(value, float) else f'{name:18s} {value}')
    if summary.skipped and not args.skip_bad:
        print(f'exit code 1: {len(summary.skipped)} photos were skipped, all others are in the file (--skip-bad: 0)')
        return 1
    return 0


if __name__ == '__main__':
    # File names that are not UTF-8 are shown escaped.
    sys.stdout.reconfigure(errors='backslashreplace')
    sys.exit(main())
