"""Command-line options shared by the tools that probe a model on annotated images; imports no heavy package."""

import argparse

#: Levels of a ResNet and its FPN; the same as in ccop_mm/evaluation/feature_maps.py, which takes seconds to import.
STAGES = ('C2', 'C3', 'C4', 'C5')
PYRAMID = ('P2', 'P3', 'P4', 'P5')


def probe_parser() -> argparse.ArgumentParser:
    """Creates a parent parser with the model, the annotated images and the device."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('config', help='pre-training config')
    parser.add_argument('checkpoint', nargs='?', help='pre-training checkpoint (default: random weights)')
    parser.add_argument('--annotations', required=True, help='COCO annotation file with boxes')
    parser.add_argument('--images', required=True, help='root folder of the annotated images')
    parser.add_argument('--device', default='auto', help='device of the model (default: a GPU if there is one)')
    return parser
