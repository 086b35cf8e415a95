"""Writes backbone and FPN of a pre-training checkpoint for other libraries.

python tools/export.py work_dirs/ccop_r50_fpn_800e_coco/epoch_800.pth --to detectron2
"""

import argparse
from pathlib import Path

from ccop_mm.errors import exit_on_input_error
from ccop_mm.weights import TARGETS, convert


def parse_args():
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description='Export a pre-training checkpoint: plain tensors, and strings that say where they come from'
    )
    parser.add_argument('checkpoint', type=Path, help='checkpoint of a pre-training, or any file tools/import.py reads')
    parser.add_argument('--to', choices=list(TARGETS), required=True, help='whose names; torchvision and timm: no FPN')
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FILE',
        help='file to write, .pth or .safetensors (default: CHECKPOINT_TO.pth beside the checkpoint)',
    )
    return parser.parse_args()


@exit_on_input_error
def main():
    """Runs the tool."""
    args = parse_args()
    print(
        convert(
            args.checkpoint, args.to, args.out or args.checkpoint.with_name(f'{args.checkpoint.stem}_{args.to}.pth')
        )
    )


if __name__ == '__main__':
    main()
