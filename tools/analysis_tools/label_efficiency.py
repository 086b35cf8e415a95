"""Does pre-training help your detector with few labels? Trains it from several initial weights and compares its AP.

For each initial weights and each share of the labels, the learning rate is chosen on images that are not measured, and
the detector is trained with several seeds (docs/label_efficiency.md). Repeating the command resumes an interrupted
study.

Examples:
  python tools/analysis_tools/label_efficiency.py my_detector.py --weights random imagenet=init_cfg ccop=weights.pth \\
      --out work_dirs/labels --dry-run
  python tools/analysis_tools/label_efficiency.py mmdet::retinanet/retinanet_r50_fpn_1x_coco.py \\
      --weights random imagenet=init_cfg --annotations train.json --images train/ --val-annotations val.json \\
      --val-images val/ --num-images 50 200 --out work_dirs/labels
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# Python does this only for a script that is executed directly, not for one that is imported or run by runpy.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from common_arguments import OptionAction, limit_busy_waiting


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('detector_config', help='config of the detector: a file, or mmdet::FOLDER/NAME.py')
    parser.add_argument(
        '--weights',
        nargs='+',
        required=True,
        metavar='NAME=FILE',
        help='initial weights: "random", NAME=init_cfg (what the config loads, such as ImageNet), or NAME=FILE '
        '(backbone with or without neck; with {seed} in FILE one per seed); differences are from the first',
    )
    parser.add_argument('--out', required=True, help='output folder')
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        '--shares',
        type=float,
        nargs='+',
        default=[10, 100],
        metavar='PERCENT',
        help='shares of the labeled training images in percent (default: 10 100)',
    )
    sizes.add_argument(
        '--num-images', type=int, nargs='+', default=[], metavar='N', help='the same as numbers of images'
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='random seeds (default: 0 1 2)')
    parser.add_argument(
        '--lr-factors',
        type=float,
        nargs='+',
        default=[0.3, 1, 3],
        metavar='FACTOR',
        help="multiples of the config's learning rate to choose from; a single one is used as it is (default: 0.3 1 3)",
    )
    parser.add_argument(
        '--extend', action='store_true', help='try one more learning rate beyond an edge that is the best'
    )
    parser.add_argument('--class-agnostic', action='store_true', help='make all boxes one class')
    parser.add_argument(
        '--iterations',
        type=int,
        nargs='+',
        default=[],
        metavar='N',
        help="length of a run, for all shares or one per share (default: the config's epochs, from 300 to 1,000)",
    )
    parser.add_argument('--annotations', help="COCO json of the training images (default: the config's data)")
    parser.add_argument('--images', help='folder of the training images')
    parser.add_argument('--val-annotations', help='COCO json of the images that AP is measured on')
    parser.add_argument('--val-images', help='folder of these images')
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='number of runs at a time (default: 1)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionAction,
        default={},
        metavar='KEY=VALUE',
        help="settings of the detector's config to override, e.g. train_dataloader.batch_size=8",
    )
    parser.add_argument('--dry-run', action='store_true', help='only check everything and estimate the duration')
    parser.add_argument('--debug', action='store_true', help='print the traceback of an error in the input, too')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Runs the study; returns the exit code: 1 if a run failed."""
    from ccop_mm import apis

    names = ('annotations', 'images', 'val_annotations', 'val_images', 'jobs', 'dry_run', 'class_agnostic', 'extend')
    lists = ('shares', 'num_images', 'seeds', 'lr_factors', 'iterations')
    try:
        result = apis.label_efficiency(
            args.detector_config,
            args.weights,
            args.out,
            options=args.cfg_options,
            **{name: getattr(args, name) for name in (*names, *lists)},
        )
    except KeyboardInterrupt:
        print('interrupted: repeat the command to resume', file=sys.stderr)
        return 130
    print(result)
    if not args.dry_run:
        print(f'\n{Path(args.out, "results.png")}, {Path(args.out, "results.md")}, {Path(args.out, "results.json")}')
    return 1 if result.failed else 0


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    limit_busy_waiting()
    # Imported after parsing, so that --help does not wait for torch.
    from ccop_mm.utils.errors import exit_on_input_error

    sys.exit(exit_on_input_error(run)(args))


if __name__ == '__main__':
    main()
