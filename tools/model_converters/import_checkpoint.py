"""Imports the backbone, and the FPN if present, of a checkpoint of another project.

Supported: the CCOP authors' release, MoCo v2, mmselfsup's MoCo, torchvision, timm and detectron2. The format is
detected from the keys of the checkpoint. CCOPPretrained loads an output with an FPN, BackbonePretrained one without.

Example:
  python tools/model_converters/import_checkpoint.py moco_v2_800ep_pretrain.pth.tar --out checkpoints/moco_v2_800ep.pth
"""

import argparse
from collections.abc import Sequence
from pathlib import Path


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='file to import; code in the file is not executed')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE', help='output file, *.pth or *.safetensors')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    from ccop_mm.weights import convert

    print(convert(args.checkpoint, 'ccop', args.out))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from ccop_mm.utils.errors import exit_on_input_error

    exit_on_input_error(run)(args)


if __name__ == '__main__':
    main()
