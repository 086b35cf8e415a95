"""Exports the backbone and neck of a pre-training checkpoint for other libraries.

Example:
  python tools/model_converters/export_checkpoint.py work_dirs/ccop_r50_fpn_800e_coco/epoch_800.pth --to detectron2
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

# Keys of ccop_mm.weights.TARGETS, listed here so that --help does not import torch.
TARGETS = ('ccop', 'torchvision', 'timm', 'detectron2')
# Former names of targets.
ALIASES = ('mmdet',)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'checkpoint',
        type=Path,
        help='checkpoint of a pre-training run, or any file that import_checkpoint.py reads',
    )
    parser.add_argument(
        '--to',
        choices=(*TARGETS, *ALIASES),
        required=True,
        metavar=f'{{{",".join(TARGETS)}}}',
        help='target format: ccop (formerly called mmdet) stores any backbone and neck for the initializers of '
        'ccop_mm; the others are for ResNet and ResNeXt, and torchvision and timm contain no FPN',
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FILE',
        help='output file, *.pth or *.safetensors (default: CHECKPOINT_TO.pth in the folder of the checkpoint)',
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    from ccop_mm.weights import convert

    out = args.out or args.checkpoint.with_name(f'{args.checkpoint.stem}_{args.to}.pth')
    print(convert(args.checkpoint, args.to, out))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from ccop_mm.utils.errors import exit_on_input_error

    exit_on_input_error(run)(args)


if __name__ == '__main__':
    main()
