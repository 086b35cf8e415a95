"""Pre-trains the backbone and the neck of any mmdet detector on images without labels (docs/pretrain_any_detector.md).

Generates proposals, writes a pre-training config, trains, exports the weights, and writes a config that fine-tunes the
detector from them. Finished steps are skipped: repeating the command after an interruption resumes it. OUT/pretrain.py
and OUT/finetune.py may be edited.

Examples:
  python tools/pretrain.py mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py my_images/ --out work_dirs/rtmdet --dry-run
  python tools/pretrain.py my_detector.py my_images/ --out work_dirs/my_detector --weights my_detector.pth
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# Python does this only for a script that is executed directly, not for one that is imported or run by runpy.
sys.path.append(str(Path(__file__).resolve().parent))
from common_arguments import OptionAction, limit_busy_waiting


def epochs(text: str) -> int | str:
    """Parses the number of epochs."""
    return text if text == 'auto' else int(text)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('detector_config', help='config of the detector: a file, or mmdet::FOLDER/NAME.py')
    parser.add_argument(
        'images', help='folder of images (searched recursively), COCO json, or *.txt with a path per line'
    )
    parser.add_argument('--out', required=True, help='output folder')
    parser.add_argument(
        '--weights',
        metavar='CHECKPOINT',
        help='initial weights: checkpoint of a detector, a classifier or a pre-training (file, URL or torchvision://NAME);'
        ' "init_cfg" for those that the backbone of the detector starts from (default: random)',
    )
    parser.add_argument(
        '--weights-prefix',
        metavar='PREFIX',
        help='prefix of the keys of the backbone in the initial weights, to load only the backbone (default: found)',
    )
    parser.add_argument(
        '--epochs',
        type=epochs,
        default='auto',
        metavar='N|auto',
        help='number of epochs (default: by the number of images)',
    )
    parser.add_argument(
        '--view-size', type=int, metavar='PIXELS', help='side of the views (default: 224, less for small images)'
    )
    parser.add_argument(
        '--batch-size', type=int, metavar='N', help='images per step and GPU (default: 32 on a CPU, up to 256 on a GPU)'
    )
    parser.add_argument(
        '--gpus',
        type=int,
        default=1,
        metavar='N',
        help='number of GPUs that the sizes are for; with several, the command that trains is printed (default: 1)',
    )
    parser.add_argument('--image-root', help='folder of the images of a json or text file (default: guessed)')
    parser.add_argument('--workers', type=int, metavar='N', help='number of processes (default: number of cores)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionAction,
        default={},
        metavar='KEY=VALUE',
        help='settings of the pre-training config to override, written to OUT/pretrain.py',
    )
    parser.add_argument(
        '--dry-run', action='store_true', help='only write the configs, measure one step and estimate the duration'
    )
    parser.add_argument('--debug', action='store_true', help='print the traceback of an error in the input, too')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Runs the steps; returns the exit code."""
    from ccop_mm import apis

    names = ('weights', 'weights_prefix', 'epochs', 'view_size', 'batch_size', 'image_root', 'workers', 'dry_run')
    try:
        result = apis.pretrain(
            args.detector_config,
            args.images,
            args.out,
            options=args.cfg_options,
            num_gpus=args.gpus,
            **{name: getattr(args, name) for name in names},
        )
    except KeyboardInterrupt:
        print('interrupted: repeat the command to resume', file=sys.stderr)
        return 130
    print(result)
    return 0


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    limit_busy_waiting()
    # Imported after parsing, so that --help does not wait for torch.
    from ccop_mm.utils.errors import exit_on_input_error

    sys.exit(exit_on_input_error(run)(args))


if __name__ == '__main__':
    main()
