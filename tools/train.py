"""Trains: pre-training and transfer alike.

python tools/train.py configs/ccop/ccop_r50_fpn_800e_coco.py
python tools/train.py configs/transfer/mask_rcnn/mask-rcnn_r50-fpn_ccop-800e_1x_coco.py
"""

import argparse

from ccop_mm.engine import launch
from ccop_mm.errors import exit_on_input_error


def parse_args():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description='Train a model: CCOP pre-training, or a detector from its checkpoint')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from a checkpoint; from the newest in the work folder if none is named',
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (needs a GPU)')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by the photos of a step over the config's auto_scale_lr.base_batch_size",
    )
    launch.add_common_arguments(parser)
    return parser.parse_args()


@exit_on_input_error
def main():
    """Runs the tool."""
    args = parse_args()
    cfg = launch.load_config(args)
    launch.set_resume(cfg, args.resume)
    launch.train(cfg)


if __name__ == '__main__':
    main()
