"""Shows the four steps on little data: propose, pre-train, transfer, inspect (`make demo`)."""

import argparse
from pathlib import Path

from ccop_mm.demo import run_demo
from ccop_mm.errors import exit_on_input_error


def parse_args():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo'), help='folder for all results')
    parser.add_argument('--data', type=Path, help='folder in COCO layout with masks; synthetic scenes without it')
    parser.add_argument('--pretrain-steps', type=int, default=180, help='steps of pre-training (default: %(default)s)')
    parser.add_argument('--transfer-steps', type=int, default=240, help='steps of fine-tuning (default: %(default)s)')
    parser.add_argument('--train-photos', type=int, default=96, help='at most so many (default: %(default)s)')
    parser.add_argument('--val-photos', type=int, default=48, help='at most so many (default: %(default)s)')
    return parser.parse_args()


@exit_on_input_error
def main():
    """Runs the tool."""
    args = parse_args()
    table = run_demo(args.out, args.data, args.pretrain_steps, args.transfer_steps, args.train_photos, args.val_photos)
    print(f'\n{table}', end='')


if __name__ == '__main__':
    main()
