"""Reads backbone and FPN of the authors' release, MoCo v2, mmselfsup's MoCo, torchvision or detectron2.

python tools/import.py moco_v2_800ep_pretrain.pth.tar --out checkpoints/moco_v2_800ep.pth
"""

import argparse
from pathlib import Path

from ccop_mm.errors import exit_on_input_error
from ccop_mm.weights import convert


def parse_args():
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description='Import a checkpoint for BackbonePretrained (a ResNet alone) or CCOPPretrained (with an FPN); '
        'its format is recognized by its names'
    )
    parser.add_argument('checkpoint', help='file to read; no code in it is run')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE', help='file to write, .pth or .safetensors')
    return parser.parse_args()


@exit_on_input_error
def main():
    """Runs the tool."""
    args = parse_args()
    print(convert(args.checkpoint, 'mmdet', args.out))


if __name__ == '__main__':
    main()
