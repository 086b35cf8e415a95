"""The spatial noise curriculum on your photos: jittered boxes, early and late in training (paper, Figure 3).

Example: python tools/inspect/curriculum.py proposals.npz --images train/ --out curriculum.png
or, of a run, the curves of zeta, beta, acceptance and the hardest candidate's similarity:
         python tools/inspect/curriculum.py --work-dir work_dirs/my_ccop --out curves.png
"""

import argparse
from pathlib import Path

from ccop_mm.errors import InputError, exit_on_input_error
from ccop_mm.proposals import ProposalStore
from ccop_mm.visualization import (
    draw_curriculum,
    draw_curriculum_curves,
    load_jitter,
    read_training_log,
    sample_photos,
)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('proposals', nargs='?', help='file that tools/propose.py wrote')
    parser.add_argument('--images', help='folder that its file names are relative to')
    parser.add_argument('--work-dir', help='folder that tools/train.py wrote to, for the curves')
    parser.add_argument('--out', required=True, help='figure to write, *.png or *.svg')
    parser.add_argument('--num', type=int, default=3, help='number of photos (default: %(default)s)')
    parser.add_argument('--config', help="pre-training config whose box jitter is shown; the paper's without it")
    parser.add_argument(
        '--progress', type=float, nargs='+', default=[0, 0.5, 1], help='fractions of training done (default: 0 0.5 1)'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of photos and boxes drawn (default: %(default)s)')
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv=None):
    args = parse_args(argv)
    if (args.work_dir is None) == (args.proposals is None) or (args.proposals and not args.images):
        raise InputError('give either a proposals file and --images, or --work-dir')
    if args.work_dir:
        draw_curriculum_curves(read_training_log(args.work_dir), Path(args.work_dir).resolve().name, args.out)
        print(f'curves drawn: {args.out}')
        return
    jitter = load_jitter(args.config)
    photos, proposals = sample_photos(ProposalStore.load(args.proposals), args.images, args.num, args.seed)
    draw_curriculum(photos, proposals, jitter, args.progress, out=args.out, seed=args.seed)
    print(f'{len(photos)} photos drawn: {args.out}')


if __name__ == '__main__':
    main()
