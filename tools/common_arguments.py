"""Command line options shared by the tools that read a training config."""

import argparse
import os
from typing import Any

from mmengine.config import DictAction


class OptionAction(DictAction):
    """mmengine's action for ``KEY=VALUE`` options; a value that it cannot parse is an error of the command line."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *args: Any) -> None:
        """Parses the options."""
        try:
            if any(value.partition('=')[2].startswith(('dict(', '{')) for value in values):
                raise ValueError
            super().__call__(parser, namespace, values, *args)
        except (AssertionError, RecursionError, ValueError):  # parentheses that do not match or call something, no =
            parser.error(
                f'{self.option_strings[0]} {" ".join(values)}: write KEY=VALUE with a number, text, (1,2) or [1,2], '
                'and one option per key of a dict, such as optim_wrapper.optimizer.lr=0.1'
            )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of OpenMMLab's training and test tools, see :func:`config_arguments`."""
    parser.add_argument(
        '--work-dir', help='directory for logs and checkpoints (default: work_dirs/<name of the config file>)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionAction,
        default={},
        metavar='KEY=VALUE',
        help='config settings to override, e.g. train_dataloader.batch_size=8 "model.box_jitter.noise=(.2,.8)"',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--debug', action='store_true', help='print the traceback of an error in the input, too')
    # Passed by older launchers of torch; newer ones only set the environment variable LOCAL_RANK.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that change the training config."""
    parser.add_argument('--amp', action='store_true', help='use automatic mixed precision (requires a GPU)')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the ratio of the total batch size to auto_scale_lr.base_batch_size',
    )


def config_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the keyword arguments of ``ccop_mm.engine.launch.load_config`` for a parsed command line."""
    names = ('config', 'work_dir', 'launcher', 'local_rank', 'amp', 'auto_scale_lr')
    return dict(options=args.cfg_options, **{name: getattr(args, name) for name in names if name in args})


def limit_busy_waiting() -> None:
    """Lets idle OpenMP threads sleep soon instead of waiting actively, unless the environment configures it.

    On a machine that several processes share, actively waiting threads slow training on the CPU down several times.
    Threads that never wait actively slow down small training steps. To be called before torch is imported.
    """
    if not {'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME'} & os.environ.keys():
        os.environ.update(OMP_WAIT_POLICY='passive', GOMP_SPINCOUNT='2000')
