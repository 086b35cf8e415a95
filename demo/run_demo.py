"""Runs the four steps (propose, pre-train, transfer, inspect) end to end on a small dataset.

The demo calls the tools of the project as a user would. Without --data it generates synthetic scenes, so nothing is
downloaded.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo'), help='output folder (default: %(default)s)')
    parser.add_argument(
        '--data',
        type=Path,
        help='folder in COCO layout with instance masks (annotations/*.json); default: synthetic scenes',
    )
    parser.add_argument(
        '--pretrain-steps', type=int, default=180, help='approximate pre-training iterations (default: %(default)s)'
    )
    parser.add_argument(
        '--transfer-steps', type=int, default=240, help='approximate fine-tuning iterations (default: %(default)s)'
    )
    parser.add_argument(
        '--train-images',
        '--train-photos',  # codespell:ignore photos
        type=int,
        default=96,
        help='maximum number of training images (default: %(default)s)',
    )
    parser.add_argument(
        '--val-images',
        '--val-photos',  # codespell:ignore photos
        type=int,
        default=48,
        help='maximum number of validation images (default: %(default)s)',
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    from demo_pipeline import run_demo

    summary = run_demo(
        args.out, args.data, args.pretrain_steps, args.transfer_steps, args.train_images, args.val_images
    )
    print(f'\n{summary}', end='')


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    # Imported after parsing, so that --help does not import torch.
    from ccop_mm.utils.errors import exit_on_input_error

    exit_on_input_error(run)(args)


if __name__ == '__main__':
    main()
