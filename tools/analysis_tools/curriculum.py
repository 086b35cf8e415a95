"""Plots the spatial noise curriculum: jittered boxes at several stages of training (paper, Figure 3).

Examples:
  python tools/analysis_tools/curriculum.py proposals.npz --images train/ --out curriculum.png
  python tools/analysis_tools/curriculum.py --work-dir work_dirs/my_ccop --out curves.png

The second command plots the curves of zeta, beta, the acceptance rate and the hardest candidate's similarity of a run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('proposals', nargs='?', help='proposals file written by tools/propose.py')
    parser.add_argument('--images', help='root folder of the images of the proposals file')
    parser.add_argument('--work-dir', help='work directory of tools/train.py, to plot the curves of its run')
    parser.add_argument('--out', required=True, help='figure to write (*.png or *.svg)')
    parser.add_argument('--num', type=int, default=3, help='number of images (default: %(default)s)')
    parser.add_argument(
        '--config', help="pre-training config with the box jitter to plot (default: the paper's jitter)"
    )
    parser.add_argument(
        '--progress',
        type=float,
        nargs='+',
        default=[0, 0.5, 1],
        help='fractions of training completed (default: 0 0.5 1)',
    )
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='random seed of the choice of images and of the jittered boxes (default: %(default)s)',
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Writes the figure."""
    from ccop_mm.proposals import ProposalStore
    from ccop_mm.utils.errors import InputError
    from ccop_mm.utils.train_log import read_training_log
    from ccop_mm.visualization import load_jitter, plot_curriculum, plot_curriculum_curves, sample_images

    if (args.work_dir is None) == (args.proposals is None) or (args.proposals and not args.images):
        raise InputError('pass either a proposals file with --images, or --work-dir')
    if args.work_dir:
        plot_curriculum_curves(read_training_log(args.work_dir), Path(args.work_dir).resolve().name, args.out)
        print(f'curves plotted: {args.out}')
        return
    jitter = load_jitter(args.config)
    images, proposals = sample_images(ProposalStore.load(args.proposals), args.images, args.num, args.seed)
    plot_curriculum(images, proposals, jitter, args.progress, out=args.out, seed=args.seed)
    print(f'{len(images)} images plotted: {args.out}')


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the tool."""
    args = parse_args(argv)
    # Imported after parsing, so that --help does not wait for torch.
    from ccop_mm.utils.errors import exit_on_input_error

    exit_on_input_error(run)(args)


if __name__ == '__main__':
    main()
