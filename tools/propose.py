"""Step one: finds boxes that may hold an object in photos, and writes them to one file, by image id.

Example: python tools/propose.py data/photos --out data/proposals.npz
A run that was killed goes on where it was when the same command is repeated.

Other commands, each with --help:
  propose.py verify FILE SOURCE              does the file belong to these photos, is it whole and plausible?
  propose.py evaluate FILE ANNOTATIONS       recall of annotated objects
  propose.py merge FILE ... --out FILE       the shards of a job array (--shard), or several sets, to one file
  propose.py export FILE --out JSON          to COCO json
  propose.py import JSON --out FILE          from COCO json
"""

import argparse
import sys
from pathlib import Path

from ccop_mm.errors import exit_on_input_error
from ccop_mm.proposals import ProposalStore, export_coco, import_coco, list_photos
from ccop_mm.proposals.evaluate import evaluate, read_objects
from ccop_mm.proposals.rules import METHODS, Rules
from ccop_mm.proposals.run import run
from ccop_mm.proposals.search import ENGINES, MODES
from ccop_mm.proposals.select import MERGES
from ccop_mm.proposals.shards import merge
from ccop_mm.proposals.verify import verify
from ccop_mm.visualization import draw_sizes
from ccop_mm.visualization.figure_file import check_figure_path

SOURCE_HELP = 'folder of photos (with subfolders), COCO json, or text list (*.txt) of a path a line'
ROOT_HELP = "folder of the json's or list's photos; guessed by default"


def parser_of(command=None, doc=__doc__):
    prog = f'{Path(sys.argv[0]).name} {command}' if command else None
    return argparse.ArgumentParser(
        prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def add_rules(parser):
    """Options named as the fields of Rules; None means what is customary for the method."""
    default = Rules
    group = parser.add_argument_group('how boxes are found and selected')
    group.add_argument('--method', choices=METHODS, default=default.method, help="Table 5's rows (%(default)s)")
    group.add_argument('--annotations', help='COCO json of the true boxes; SOURCE by default, if that is a json')
    group.add_argument('--mode', choices=MODES, help=f'selective search strategy ({default.mode})')
    group.add_argument('--engine', choices=ENGINES, help=f"ours, or OpenCV's: same boxes, slower ({default.engine})")
    group.add_argument('--max-side', type=int, help=f'larger photos are shrunk to search; 0: none ({default.max_side})')
    group.add_argument('--min-area', type=float, help=f'in square pixels ({default.min_area:g}; ground truth: 0)')
    group.add_argument('--max-aspect', type=float, help=f'longer by shorter ({default.max_aspect:g}; true boxes: any)')
    group.add_argument('--merge', choices=MERGES, help=f'which box takes in others ({default.merge}; true boxes: none)')
    group.add_argument('--merge-iou', type=float, help=f'merge above it ({default.merge_iou:g})')
    group.add_argument('--max-boxes', type=int, help=f'boxes kept a photo, in random order ({default.max_boxes})')
    group.add_argument('--seed', type=int, help=f'of that order and of random boxes ({default.seed})')


def propose_parser():
    parser = parser_of()
    parser.add_argument('source', help=SOURCE_HELP)
    parser.add_argument('--out', required=True, help='file to write, customarily .npz')
    parser.add_argument('--image-root', help=ROOT_HELP)
    add_rules(parser)
    parser.add_argument('--workers', type=int, help='processes; one for each core by default')
    parser.add_argument('--scheduler', metavar='ADDRESS', help='work on the cluster of this Dask scheduler instead')
    parser.add_argument('--shard', metavar='i/n', help='only the i-th of n parts of the photos; see merge')
    parser.add_argument('--evaluate', metavar='ANNOTATIONS', help='COCO json to measure recall against')
    parser.add_argument('--figure', help='histogram that --evaluate draws, *.png or *.svg (OUT_sizes.png)')
    parser.add_argument('--skip-bad', action='store_true', help='exit with 0 although photos were skipped')
    return parser


def propose_command(args):
    names = (
        'method',
        'mode',
        'engine',
        'max_side',
        'min_area',
        'max_aspect',
        'merge',
        'merge_iou',
        'max_boxes',
        'seed',
    )
    rules = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    annotations = args.annotations
    if args.method == 'ground-truth' and annotations is None and args.source.lower().endswith('.json'):
        annotations = args.source
    photos = list_photos(args.source, args.image_root)
    if args.evaluate:  # a fault of these files should not wait until the search is over
        read_objects(args.evaluate)
        figure = check_figure_path(args.figure or Path(args.out).with_suffix('').as_posix() + '_sizes.png')
    try:
        summary = run(
            photos,
            args.out,
            workers=args.workers,
            scheduler=args.scheduler,
            shard=args.shard,
            annotations=annotations,
            **rules,
        )
    except KeyboardInterrupt:
        partial = Path(f'{args.out}.partial')
        kept = f'finished photos are kept in {partial}' if partial.exists() else 'no photo was finished'
        print(f'interrupted: {kept}; repeat the command to go on', file=sys.stderr)
        return 130
    print(summary)
    if args.evaluate:
        print_evaluation(ProposalStore.load(args.out), args.evaluate, figure)
    if summary.skipped and not args.skip_bad:
        print(f'exit code 1: {len(summary.skipped)} photos were skipped, all others are in the file (--skip-bad: 0)')
        return 1
    return 0


def print_evaluation(store, annotations, figure):
    for name, value in evaluate(store, annotations).items():
        print(f'{name:18s} {value:.3f}' if isinstance(value, float) else f'{name:18s} {value}')
    if figure:
        draw_sizes(store, annotations, out=figure)
        print(f'sizes              {figure}')


def evaluate_parser():
    parser = parser_of('evaluate', 'Recall and overlap of annotated objects, and a histogram of box sizes.')
    parser.add_argument('file', help='proposals file')
    parser.add_argument('annotations', help='COCO json of true boxes; photos are matched by file name')
    parser.add_argument('--figure', help='histogram to write, *.png or *.svg')
    return parser


def evaluate_command(args):
    print_evaluation(ProposalStore.load(args.file), args.annotations, args.figure)
    return 0


def verify_parser():
    doc = 'Checks checksum, ids, names, sizes, boxes and provenance. Exit code 0: no fault, 1: faults.'
    parser = parser_of('verify', doc)
    parser.add_argument('file', help='proposals file')
    parser.add_argument('source', help=SOURCE_HELP)
    parser.add_argument('--image-root', help=ROOT_HELP)
    parser.add_argument('--again', type=int, default=0, metavar='N', help='also find the boxes of N photos anew')
    parser.add_argument('--workers', type=int, default=1, help='processes (%(default)s)')
    return parser


def verify_command(args):
    store = ProposalStore.load(args.file)
    report = verify(store, list_photos(args.source, args.image_root), again=args.again, workers=args.workers)
    print(report)
    return 1 if report.faults else 0


def merge_parser():
    parser = parser_of('merge', 'Puts the shards of one run, or files of several sets of photos, into one file.')
    parser.add_argument('files', nargs='+', help='proposals files made by the same rules')
    parser.add_argument('--out', required=True, help='file to write')
    return parser


def merge_command(args):
    merged = merge(args.files, args.out)
    print(f'{len(merged)} photos, {int(merged.num_boxes.sum())} boxes, {len(merged.skipped)} skipped: {args.out}')
    return 0


def export_parser():
    parser = parser_of('export', 'Writes proposals as COCO json: a box an annotation, one category.')
    parser.add_argument('file', help='proposals file')
    parser.add_argument('--out', required=True, help='json to write')
    return parser


def export_command(args):
    store = ProposalStore.load(args.file)
    export_coco(store, args.out)
    print(f'{len(store)} photos, {int(store.num_boxes.sum())} boxes: {args.out}')
    return 0


def import_parser():
    parser = parser_of('import', 'Makes a proposals file of a COCO json: an export, annotations, or results.')
    parser.add_argument('json', help='COCO json, or a list of results ("image_id", "bbox")')
    parser.add_argument('--out', required=True, help='file to write')
    parser.add_argument('--photos', metavar='JSON', help='for results: COCO json of their photos')
    parser.add_argument(
        '--proposals', action='store_true', help="the annotations are another tool's proposals, no truth"
    )
    return parser


def import_command(args):
    store = import_coco(args.json, args.photos, args.proposals)
    store.save(args.out)
    print(f'{len(store)} photos, {int(store.num_boxes.sum())} boxes, {store.metadata.get("method")}: {args.out}')
    return 0


COMMANDS = {
    'evaluate': (evaluate_parser, evaluate_command),
    'export': (export_parser, export_command),
    'import': (import_parser, import_command),
    'merge': (merge_parser, merge_command),
    'verify': (verify_parser, verify_command),
}


def parse_args(argv=None):
    """The arguments, and ``command``, the function to call with them."""
    argv = sys.argv[1:] if argv is None else argv
    make_parser, command = propose_parser, propose_command
    # A folder of such a name is meant by ./verify.
    if argv and argv[0] in COMMANDS:
        (make_parser, command), argv = COMMANDS[argv[0]], argv[1:]
    parser = make_parser()
    parser.set_defaults(command=command)
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv=None):
    args = parse_args(argv)
    return args.command(args)


if __name__ == '__main__':
    # File names that are not UTF-8 are shown escaped.
    sys.stdout.reconfigure(errors='backslashreplace')
    sys.exit(main())
