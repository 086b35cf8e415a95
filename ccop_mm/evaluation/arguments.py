"""What the command line of every probe says."""

import argparse


def add_probe_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a tool that looks at a model on annotated photos: which model, which photos, where."""
    parser.add_argument('config', help='pre-training config')
    parser.add_argument('checkpoint', nargs='?', help='pre-training checkpoint; random weights without it')
    parser.add_argument('--annotations', required=True, help='COCO json with boxes')
    parser.add_argument('--images', required=True, help='folder that its file names are relative to')
    parser.add_argument('--device', default='cpu', help='e.g. cuda (default: %(default)s)')
