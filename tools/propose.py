"""Generates object proposals for images and writes them to one file, by image id.

Example: python tools/propose.py data/images --out data/proposals.npz
Repeating the command after an interruption resumes the run.

Other commands, each with --help:
  propose.py verify FILE SOURCE              check that a proposals file belongs to the images
  propose.py evaluate FILE ANNOTATIONS       recall of annotated objects
  propose.py merge FILE ... --out FILE       merge the shards of a job array (--shard), or several sets of images
  propose.py export FILE --out JSON          convert to COCO json
  propose.py import JSON --out FILE          convert from COCO json
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

if __name__ == '__main__':
    # Neither this tool nor its worker processes need torch and the OpenMMLab packages, which take seconds to import.
    os.environ.setdefault('CCOP_MM_LAZY', '1')

from ccop_mm.proposals import (
    ProposalSettings,
    ProposalStore,
    export_coco,
    generate_proposals,
    import_coco,
    list_images,
    merge,
)
from ccop_mm.proposals.coco_format import DROPPED_KEY
from ccop_mm.proposals.evaluate import evaluate
from ccop_mm.proposals.runner.finished_file import check_replaceable
from ccop_mm.proposals.settings import GROUND_TRUTH_SETTINGS
from ccop_mm.proposals.verify import verify
from ccop_mm.utils.coco_json import read_objects
from ccop_mm.utils.errors import exit_on_input_error


def run_generate(args: argparse.Namespace) -> int:
    settings = {field.name: getattr(args, field.name) for field in fields(ProposalSettings) if field.name in args}
    annotations = args.annotations
    if settings.get('method') == 'ground-truth' and annotations is None and args.source.lower().endswith('.json'):
        annotations = args.source
    images = list_images(args.source, args.image_root)
    if args.evaluate:  # errors in these arguments are reported before the search
        read_objects(args.evaluate)
        figure = check_figure(args.figure or Path(args.out).with_suffix('').as_posix() + '_sizes.png')
    try:
        summary = generate_proposals(
            images,
            args.out,
            workers=args.workers,
            scheduler=args.scheduler,
            shard=args.shard,
            annotations=annotations,
            overwrite=args.overwrite,
            **settings,
        )
    except KeyboardInterrupt:
        partial = Path(f'{args.out}.partial')
        state = f'finished images are stored in {partial}' if partial.exists() else 'no image was finished'
        print(f'interrupted: {state}; repeat the command to resume', file=sys.stderr)
        return 130
    print(summary)
    if args.evaluate:
        print_evaluation(ProposalStore.load(args.out), args.evaluate, figure)
    if summary.skipped and not args.skip_bad:
        print(f'exit code 1: {len(summary.skipped)} images were skipped, the file contains all others (see --skip-bad)')
        return 1
    return 0


def run_verify(args: argparse.Namespace) -> int:
    store = ProposalStore.load(args.file)
    report = verify(store, list_images(args.source, args.image_root), again=args.again, workers=args.workers)
    print(report)
    return 1 if report.problems else 0


def run_evaluate(args: argparse.Namespace) -> int:
    figure = check_figure(args.figure) if args.figure else None
    print_evaluation(ProposalStore.load(args.file), args.annotations, figure)
    return 0


def run_merge(args: argparse.Namespace) -> int:
    store = merge(args.files, args.out, args.overwrite)
    print(f'{format_counts(store)}, {len(store.skipped)} skipped: {args.out}')
    return 0


def run_export(args: argparse.Namespace) -> int:
    store = ProposalStore.load(args.file)
    num_dropped = export_coco(store, args.out)
    print(f'{format_counts(store)}{format_dropped(num_dropped)}: {args.out}')
    return 0


def run_import(args: argparse.Namespace) -> int:
    store = import_coco(args.json, args.images_json, args.proposals)
    names = [name for _, name, _, _ in store.entries()]
    check_replaceable(args.out, [*names, *store.skipped], store.metadata, args.overwrite)
    store.save(args.out)
    dropped = format_dropped(store.metadata.get(DROPPED_KEY, 0))
    print(f'{format_counts(store)}{dropped}, {store.metadata.get("method")}: {args.out}')
    return 0


def format_counts(store: ProposalStore) -> str:
    return f'{len(store)} images, {int(store.num_boxes.sum())} boxes'


def format_dropped(count: int) -> str:
    return f' ({count} boxes that are not finite were dropped)' if count else ''


def check_figure(path: str) -> Path:
    """Checks the suffix of a figure's path, and that the plotting libraries can be imported."""
    import ccop_mm

    ccop_mm.register_all_modules()  # figures import torch and the OpenMMLab packages
    from ccop_mm.visualization.figure_file import check_figure_path

    return check_figure_path(path)


def print_evaluation(store: ProposalStore, annotations: str, figure: Path | None) -> None:
    for name, value in evaluate(store, annotations).items():
        print(f'{name:18s} {value:.3f}' if isinstance(value, float) else f'{name:18s} {value}')
    if figure:
        from ccop_mm.visualization.proposal_figure import plot_box_sizes

        plot_box_sizes(store, annotations, out=figure)
        print(f'figure             {figure}')


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds one option per field of ProposalSettings; options that are not given are absent from the namespace."""
    group = parser.add_argument_group('proposal settings')
    for field in fields(ProposalSettings):
        default = f'default: {field.default}'
        if field.name in GROUND_TRUTH_SETTINGS:
            default += f', for ground truth: {GROUND_TRUTH_SETTINGS[field.name]}'
        group.add_argument(
            f'--{field.name.replace("_", "-")}',
            type=field.type,
            choices=field.metadata['choices'],
            default=argparse.SUPPRESS,
            help=f'{field.metadata["help"]} ({default})',
        )


def build_parser() -> tuple[argparse.ArgumentParser, Sequence[str]]:
    """Builds the parser; returns it and the names of its commands."""
    source = argparse.ArgumentParser(add_help=False)
    source.add_argument(
        'source', help='folder of images (searched recursively), COCO json, or *.txt with a path per line'
    )
    source.add_argument('--image-root', help='folder of the images of a json or text file (default: guessed)')
    stored = argparse.ArgumentParser(add_help=False)
    stored.add_argument('file', help='proposals file')
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument('--out', required=True, help='file to write')
    replaced = argparse.ArgumentParser(add_help=False)
    replaced.add_argument(
        '--overwrite', action='store_true', help='replace a finished proposals file of other images or settings'
    )

    parser = argparse.ArgumentParser(allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    def add_command(
        name: str,
        function: Callable[[argparse.Namespace], int],
        parents: list[argparse.ArgumentParser],
        description: str,
        prog: str | None = None,
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            parents=parents,
            description=description,
            prog=prog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(function=function)
        return command

    command = add_command('generate', run_generate, [source, output, replaced], __doc__ or '', prog=parser.prog)
    add_settings(command)
    command.add_argument(
        '--annotations', help='COCO json for --method ground-truth (default: SOURCE if that is a json)'
    )
    command.add_argument('--workers', type=int, help='number of processes (default: number of cores)')
    command.add_argument('--scheduler', metavar='ADDRESS', help='run on the workers of this Dask scheduler instead')
    command.add_argument('--shard', metavar='i/n', help='process only the i-th of n parts of the images; see merge')
    command.add_argument('--evaluate', metavar='ANNOTATIONS', help='COCO json with objects whose recall is measured')
    command.add_argument(
        '--figure', help='histogram of box sizes for --evaluate, *.png or *.svg (default: OUT_sizes.png)'
    )
    command.add_argument('--skip-bad', action='store_true', help='return exit code 0 although images were skipped')

    description = 'Checks checksum, ids, file names, sizes, boxes and settings. Exit code 0: no problem, 1: problems.'
    command = add_command('verify', run_verify, [stored, source], description)
    command.add_argument(
        '--again', type=int, default=0, metavar='N', help='also generate the boxes of N images again and compare them'
    )
    command.add_argument('--workers', type=int, default=1, help='number of processes (default: %(default)s)')

    description = 'Prints recall and overlap of annotated objects, and plots a histogram of box sizes.'
    command = add_command('evaluate', run_evaluate, [stored], description)
    command.add_argument('annotations', help='COCO json with ground-truth boxes; images are matched by file name')
    command.add_argument('--figure', help='histogram to write, *.png or *.svg')

    description = 'Merges the shards of one run, or the proposals files of several sets of images.'
    command = add_command('merge', run_merge, [output, replaced], description)
    command.add_argument('files', nargs='+', help='proposals files generated with the same settings')

    add_command('export', run_export, [stored, output], 'Writes proposals as COCO json with a single category.')

    description = 'Creates a proposals file from a COCO json: an export, annotations, or detection results.'
    command = add_command('import', run_import, [output, replaced], description)
    command.add_argument('json', help='COCO json, or a list of results ("image_id", "bbox")')
    command.add_argument(
        '--images-json',
        '--photos',  # codespell:ignore photos (option of the first version)
        metavar='JSON',
        help='COCO json that lists the images of detection results',
    )
    command.add_argument(
        '--proposals', action='store_true', help='the annotations are proposals of another tool, not ground truth'
    )
    return parser, tuple(commands.choices)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser, commands = build_parser()
    if not argv or argv[0] not in commands:  # a folder with the name of a command is given as ./NAME
        argv.insert(0, 'generate')
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    return args.function(args)


if __name__ == '__main__':
    # File names that are not valid UTF-8 are printed escaped.
    sys.stdout.reconfigure(errors='backslashreplace')
    sys.exit(main())
