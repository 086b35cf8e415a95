"""Compares CCOP, its ablations, MoCo v2 and random weights on an annotated dataset, from pre-training to box AP.

    python studies/transfer_study.py DATA --out work_dirs/study --jobs 2             # small setting, on a CPU
    python studies/transfer_study.py DATA --out work_dirs/study --frozen 100         # and the frozen-detector probe
    python studies/transfer_study.py DATA --out work_dirs/study --labels 5 10        # and fine-tuned detectors
    python studies/transfer_study.py DATA --out work_dirs/tuned --moco studies/configs/mocov2-tuned_small.py
    python studies/transfer_study.py DATA --out work_dirs/full --setting full --seeds 0 1 2 --labels 10 100   # on a GPU

DATA contains annotations/train.json and annotations/val.json (COCO format) and the images in train/ and val/.
Pre-training uses the images of train/ without labels, except for ``--methods ground-truth-boxes``; all probes use val/.
An interrupted study resumes when the same command is repeated. OUT/commands.txt lists every command that was run;
OUT/results.md and OUT/results.png contain the results, which docs/results.md explains.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from study_methods import ABLATIONS, ALIASES, DEFAULT_METHODS, METHODS
from study_report import RunResult, write_report
from study_runs import Study
from study_settings import SETTINGS

from ccop_mm.utils.errors import InputError, exit_on_input_error

#: Percentages of the labels.
SHARES = (1, 5, 10, 100)


def probe_all(study: Study, methods: list[str], seeds: list[int], jobs: int) -> list[RunResult]:
    """Probes every method with every seed, ``jobs`` runs in parallel; returns the results by seed, then method."""
    # What several runs need is made first. The step timing needs selective search proposals.
    trained = [method for method in methods if method != 'random']
    timed = ['ccop'] if 'mocov2-time' in methods else []
    for kind in dict.fromkeys(METHODS[method].proposals for method in trained + timed):
        study.propose(kind)
    if timed:
        study.step_ratio()  # before the parallel runs, which would disturb the timing
    results = {}
    sequences = independent_sequences(methods, seeds)
    for finished in run_parallel(lambda runs: [study.probe(*run) for run in runs], sequences, jobs):
        results.update({(result.method, result.seed): result for result in finished})
    return [results[method, seed] for seed in seeds for method in methods]


def independent_sequences(methods: list[str], seeds: list[int]) -> list[list[tuple[str, int]]]:
    """Groups (method, seed) runs into sequences that can run in parallel, the longest first.

    ``mocov2-time`` continues the run of ``mocov2``, so both are in one sequence; every other run is independent.
    """
    moco = [method for method in ('mocov2', 'mocov2-time') if method in methods]
    groups = [['ccop'], moco, *([name] for name in ABLATIONS), ['random-bn'], ['random']]
    groups = [group for group in groups if group and group[0] in methods]
    return [[(method, seed) for method in group] for group in groups for seed in seeds]


def run_parallel(function: Callable[[Any], Any], items: list, jobs: int) -> Iterator[Any]:
    """Yields ``function(item)`` in the order of completion, ``jobs`` at a time; a failure cancels pending items."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'data', type=Path, help='folder with annotations/train.json, annotations/val.json, train/ and val/'
    )
    parser.add_argument('--out', type=Path, required=True, help='output folder')
    parser.add_argument('--setting', choices=SETTINGS, default='small', help='size of the study (default: %(default)s)')
    parser.add_argument(
        '--methods',
        nargs='+',
        type=lambda name: ALIASES.get(name, name),
        choices=METHODS,
        default=DEFAULT_METHODS,
        metavar='METHOD',
        help=f'methods to compare (default: {" ".join(DEFAULT_METHODS)}): '
        + '; '.join(f'{name}: {method.title}' for name, method in METHODS.items()),
    )
    parser.add_argument(
        '--seeds', type=int, nargs='+', default=[0], help='random seeds; every method runs with each (default: 0)'
    )
    parser.add_argument(
        '--frozen',
        type=int,
        nargs='*',
        choices=SHARES,
        default=[],
        help='measure the frozen-detector probe with these percentages of the labels (default: none)',
    )
    parser.add_argument(
        '--features',
        nargs='+',
        choices=('backbone', 'neck'),
        default=('backbone',),
        help='features of the frozen-detector probe: C3 to C5, or P3 to P5 (default: backbone)',
    )
    parser.add_argument(
        '--labels',
        type=int,
        nargs='*',
        choices=SHARES,
        default=[],
        help='fine-tune a detector on these percentages of the labels (default: no fine-tuning)',
    )
    parser.add_argument('--epochs', type=int, help="pre-training epochs of CCOP (default: the setting's)")
    parser.add_argument(
        '--moco',
        type=Path,
        help="config of MoCo v2 (default: the setting's, which uses the recipe of CCOP)",
    )
    parser.add_argument('--ccop', type=Path, help="config of CCOP (default: the setting's)")
    parser.add_argument(
        '--anneal',
        action=argparse.BooleanOptionalAction,
        help='anneal the learning rates to 0, after the warm-up of the config if it has one (default: as the setting)',
    )
    parser.add_argument(
        '--jobs', type=int, default=1, help='number of parallel runs, which share the cores (default: %(default)s)'
    )
    parser.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='device of the probes (default: %(default)s)',
    )
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.jobs < 1:
        raise InputError(f'--jobs must be at least 1, got {args.jobs}')
    if args.jobs > 1:
        os.environ.setdefault('OMP_NUM_THREADS', str(max(1, torch.get_num_threads() // args.jobs)))
    study = Study(args.data, args.out, args.setting, args.epochs, args.device, args.moco, args.ccop, args.anneal)
    methods = [method for method in METHODS if method in args.methods]
    results = probe_all(study, methods, args.seeds, args.jobs)
    table = write_report(study.out, results)  # fine-tuning takes much longer: report the probes first

    def freeze(result: RunResult) -> tuple[RunResult, dict[int, dict[str, Path]]]:
        return result, {
            percent: study.freeze(result.method, result.seed, percent, args.features) for percent in args.frozen
        }

    for result, frozen in run_parallel(freeze, results if args.frozen else [], args.jobs):
        result.frozen = frozen
        table = write_report(study.out, results)

    if args.labels:
        compared = [method for method in methods if method != 'random-bn']
        detectors = study.compare_detectors(compared, args.seeds, args.labels, args.jobs)
        table = write_report(study.out, results, detectors)
    print(f'\n{table}\nresults: {study.out / "results.md"}, results.png, results.svg; commands: commands.txt')


if __name__ == '__main__':
    main()
