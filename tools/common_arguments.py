"""Command line options shared by the tools that read a training config."""

import argparse

from mmengine.config import DictAction


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of OpenMMLab's training and test tools, which ``ccop_mm.engine.launch.load_config`` reads."""
    parser.add_argument(
        '--work-dir', help='directory for logs and checkpoints (default: work_dirs/<name of the config file>)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='config settings to override, e.g. train_dataloader.batch_size=8 "model.box_jitter.noise=(.2,.8)"',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # Passed by older launchers of torch; newer ones only set the environment variable LOCAL_RANK.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
