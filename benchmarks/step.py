"""Measures a CCOP training step against its floor: time, memory, FLOPs, stages, and scaling.

python benchmarks/step.py [--json FILE]                  R50 at 224 px, batch 4, and R18 at 128 px, batch 16
python benchmarks/step.py --suite growth [--json FILE]   one size doubled at a time; precision, layout, compilation
python benchmarks/step.py --suite gpu [--json FILE]      one GPU: R50 at batch 128 and 256 in bfloat16, and growth

The floor is the two encoders only: query backbone and FPN forward and backward, key backbone and FPN forward. All steps
of a table run alternately; a ratio is the median of the ratios within a round. Memory is the peak beyond what remains
allocated between steps; "extra" is the part beyond the floor's.

"released" computes the object branch as in the authors' released code (step_reference_implementation.py). On a CPU all
steps keep freed memory, as tools/train.py does; "released_alone" is the same step in its own process with the default
memory allocator.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import step_meters as meters
import torch
from step_subprocess import SubprocessStep
from step_variants import DTYPES, VARIANTS, Setting

from ccop_mm.engine.malloc import keep_freed_memory
from ccop_mm.utils.file_io import atomic_write
from ccop_mm.utils.text import single_line

#: Seconds reserved for compiling two image encoders on a GPU (estimated).
COMPILE_SECONDS = 120


class Table:
    """Measures steps alternately.

    Args:
        steps (dict[str, tuple[str, Setting]]): Row label -> variant and setting; ratios are relative to the first row.
        repeats (int): Number of rounds.
        deadline (float): Value of ``time.monotonic()`` after which no further round starts; at least one is made.
    """

    def __init__(self, steps: dict[str, tuple[str, Setting]], repeats: int, deadline: float) -> None:
        self.base = next(iter(steps))
        self.settings = {label: setting for label, (_, setting) in steps.items()}
        built = {label: build_step(variant, setting) for label, (variant, setting) in steps.items()}
        for step in built.values():
            meters.measure(step, 'seconds')  # allocates memory, selects kernels, compiles, creates optimizer state
        self.peak, self.resident = (
            {label: meters.measure(step, meter) for label, step in built.items()}
            for meter in ('peak_bytes', 'resident_bytes')
        )
        # The FLOP counter would run a compiled step uncompiled.
        counted = {label: step for label, step in built.items() if not step.setting.compile}
        self.flop = {label: meters.measure(step, 'flop') for label, step in counted.items()}
        self.wall: dict[str, list[float]] = {label: [] for label in steps}
        self.cpu: dict[str, list[float]] = {label: [] for label in steps}
        for number in range(repeats):
            if number and time.monotonic() > deadline:
                break
            for label, step in built.items():
                wall, cpu = meters.measure(step, 'seconds')
                self.wall[label].append(wall)
                self.cpu[label].append(cpu)
        self.rounds = len(self.wall[self.base])
        self.built = built

    def ratio(self, label: str, over: str, cpu: bool = False) -> float:
        """Returns the median of the ratios within a round, of wall time or CPU time."""
        times = self.cpu if cpu else self.wall
        return statistics.median(a / b for a, b in zip(times[label], times[over], strict=True))

    def images_per_second(self, label: str) -> float:
        """Returns the throughput; the two views of an image count as one."""
        return self.settings[label].batch / statistics.median(self.wall[label])

    def extra(self, label: str) -> int:
        """Returns the peak memory beyond the first row's, in bytes, without what remains between steps."""
        return self.peak[label] - self.peak[self.base]

    def show(self, title: str) -> None:
        """Prints the table."""
        print(f'\n{title} (median of {self.rounds})')
        print('                       s/step  images/s  / first  / first (CPU time)   peak MiB  extra MiB   GFLOP')
        for label in self.settings:
            count = f'{self.flop[label] / 1e9:8.1f}' if label in self.flop else '        '
            print(
                f'{label:20} {statistics.median(self.wall[label]):8.3f} {self.images_per_second(label):9.2f}'
                f' {self.ratio(label, self.base):8.3f} {self.ratio(label, self.base, cpu=True):19.3f}'
                f' {(self.resident[label] + self.peak[label]) / 2**20:10.0f} {self.extra(label) / 2**20:10.1f} {count}',
                flush=True,
            )

    def results(self) -> dict[str, float]:
        """Returns the table as a flat dict."""
        results: dict[str, float] = {'rounds': self.rounds}
        for label in self.settings:
            results[f'{label}_seconds'] = statistics.median(self.wall[label])
            results[f'{label}_images_per_second'] = self.images_per_second(label)
            results[f'{label}_peak_mib'] = (self.resident[label] + self.peak[label]) / 2**20
            if label in self.flop:
                results[f'{label}_gflop'] = self.flop[label] / 1e9
            if label != self.base:
                results[f'{label}_over_{self.base}'] = self.ratio(label, self.base)
                results[f'{label}_over_{self.base}_cpu_time'] = self.ratio(label, self.base, cpu=True)
                results[f'{label}_extra_mib'] = self.extra(label) / 2**20
        return results


def build_step(variant: str, setting: Setting) -> Any:
    """Builds a step, in this process unless the variant is ``released_alone``."""
    if variant == 'released_alone':
        return SubprocessStep('released', setting, torch.get_num_threads())
    return VARIANTS[variant](setting)


def stage_shares(step: Any, repeats: int) -> dict[str, float]:
    """Returns the share of each stage of a CCOP step in %, medians over ``repeats`` steps; the meters add some time."""
    clock, rounds = meters.Clock(step), []
    for _ in range(repeats):
        wall, _ = meters.seconds(step)
        stages = clock.read()
        rounds.append({**stages, 'rest': wall - sum(stages.values())} | {'': wall})
    return {label: 100 * statistics.median(one[label] / one[''] for one in rounds) for label in rounds[0] if label}


def compare_to_floor(
    title: str, setting: Setting, repeats: int, deadline: float, names: Collection[str]
) -> dict[str, float]:
    """Measures and prints the floor, CCOP and other variants with one setting; returns name -> result."""
    table = Table({name: (name, setting) for name in names}, repeats, deadline)
    table.show(title)
    results = table.results()
    for name in ('released', 'released_alone'):
        if name in names:
            results[f'{name}_over_ccop_time'] = table.ratio(name, 'ccop')
            results[f'{name}_over_ccop_cpu_time'] = table.ratio(name, 'ccop', cpu=True)
            print(f'{name} over ccop, time: {results[f"{name}_over_ccop_time"]:.2f}', end=', ')
            print(f'CPU time: {results[f"{name}_over_ccop_cpu_time"]:.2f}')
    if 'released' in names:
        results['released_over_ccop_extra_memory'] = table.extra('released') / table.extra('ccop')
        total = {name: table.resident[name] + table.peak[name] for name in ('floor', 'released', 'ccop')}
        results['released_over_ccop_extra_memory_with_state'] = (total['released'] - total['floor']) / (
            total['ccop'] - total['floor']
        )
        for name in ('extra_memory', 'extra_memory_with_state'):
            print(f'released over ccop, {name.replace("_", " ")}: {results[f"released_over_ccop_{name}"]:.2f}')
    stages = stage_shares(table.built['ccop'], min(repeats, 5))
    print('stages of ccop, %: ' + ', '.join(f'{label} {share:.1f}' for label, share in stages.items()), flush=True)
    results.update({f'share_{label.replace(" ", "_")}': share for label, share in stages.items()})
    return results


def measure_growth(
    setting: Setting, repeats: int, deadline: float, rows: Collection[str] | None = None
) -> dict[str, float]:
    """Measures CCOP with one size doubled, or with another precision or layout, relative to CCOP as it is."""
    sizes = ('batch', 'jitter', 'objects', 'queue')
    changed = {f'{name}_x2': replace(setting, **{name: 2 * getattr(setting, name)}) for name in sizes}
    for precision in DTYPES:
        if precision != setting.precision:
            changed[precision] = replace(setting, precision=precision)
    layout = 'channels_first' if setting.channels_last else 'channels_last'
    changed[layout] = replace(setting, channels_last=not setting.channels_last)
    changed['compiled'] = replace(setting, compile=True)
    results: dict[str, float] = {}
    for label, other in changed.items():  # two models at a time, to limit memory
        if rows and label not in rows:
            continue
        reserve = COMPILE_SECONDS if other.compile and setting.device != 'cpu' else 0
        if time.monotonic() + reserve > deadline:
            print(f'\n{label}: not measured, out of time')
            continue
        meters.release_memory(setting.device)
        try:
            table = Table({'ccop': ('ccop', setting), label: ('ccop', other)}, repeats, deadline)
        except (RuntimeError, torch.OutOfMemoryError) as error:  # e.g. an unsupported precision or no compiler
            print(f'\n{label}: not measured ({single_line(error)})')
            continue
        table.show(f'growth: {label}')
        results[f'{label}_rounds'] = results[f'{label}ds'] = table.rounds  # the second is a former, misspelled name
        results[f'growth_{label}'] = table.ratio(label, 'ccop')
        results[f'growth_{label}_cpu_time'] = table.ratio(label, 'ccop', cpu=True)
        results[f'growth_{label}_peak'] = (table.resident[label] + table.peak[label]) / (
            table.resident['ccop'] + table.peak['ccop']
        )
        if label in table.flop and 'ccop' in table.flop:
            results[f'growth_{label}_flop'] = table.flop[label] / table.flop['ccop']
    return results


def matrix_flop_rate(device: str, precision: str, size: int) -> float:
    """Returns the FLOP/s of one large matrix product, an estimate of the device's peak."""
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
    times = []
    for _ in range(6):
        meters.synchronize(device)
        start = time.perf_counter()
        a @ b
        meters.synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times[1:])


def run_step_suite(args: argparse.Namespace, r50: Setting, r18: Setting, deadline: float) -> dict[str, float]:
    """Compares all variants to the floor at two sizes; results of R18 are prefixed with ``r18_``."""
    results: dict[str, float] = {}
    start = time.monotonic()
    # On a GPU every process has the same allocator.
    beside = [name for name in args.beside if args.device == 'cpu' or name != 'released_alone']
    for number, (prefix, setting) in enumerate(dict(r50=r50, r18=r18).items()):
        if prefix in args.models:
            until = start + (deadline - start) * (number + 1) / 2 if len(args.models) > 1 else deadline
            title = f'R{setting.depth}, {setting.size} px, batch {setting.batch}'
            found = compare_to_floor(title, setting, args.repeats, until, ['floor', *beside, 'ccop'])
            results.update({name if prefix == 'r50' else f'{prefix}_{name}': value for name, value in found.items()})
    return results


def run_gpu_suite(args: argparse.Namespace, deadline: float) -> dict[str, Any]:
    """Measures a data-center GPU; with ``--device cpu --tiny`` it is a smoke test."""
    setting = Setting(precision='bf16', channels_last=True, device=args.device, batch=128)
    if args.tiny:
        setting = replace(setting, depth=18, size=64, batch=4, objects=3, jitter=2, queue=256)
    rate = matrix_flop_rate(args.device, 'bf16', 256 if args.tiny else 8192)
    card = torch.cuda.get_device_name() if args.device != 'cpu' else 'CPU'
    print(f'{card}: {rate / 1e12:.1f} TFLOP/s in bfloat16 matrix products')
    results: dict[str, Any] = dict(card=card, matrix_tflops=rate / 1e12)
    start = time.monotonic()
    time_share = (deadline - start) / 4
    for part, batch in enumerate((setting.batch, 2 * setting.batch)):
        # The reference implementation needs tens of GB more at batch 256, so it is measured at the smaller batch only.
        names = ('floor', 'moco', 'released', 'ccop') if part == 0 else ('floor', 'ccop')
        label = f'batch{batch}'
        meters.release_memory(args.device)
        title, until = f'R{setting.depth}, {setting.size} px, {label}', start + (part + 1) * time_share
        found = compare_to_floor(title, replace(setting, batch=batch), 20, until, names)
        found['ccop_share_of_matrix_rate'] = found['ccop_gflop'] * 1e9 / found['ccop_seconds'] / rate
        print(f'share of the matrix rate: {100 * found["ccop_share_of_matrix_rate"]:.1f} %')
        results.update({f'{label}_{name}': value for name, value in found.items()})
    results.update(measure_growth(replace(setting, batch=setting.batch // 2), 10, deadline))
    return results


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    others = [name for name in VARIANTS if name not in ('floor', 'ccop')] + ['released_alone']
    parser.add_argument(
        '--suite', choices=['step', 'growth', 'gpu'], default='step', help='what to measure (default: %(default)s)'
    )
    parser.add_argument(
        '--models', nargs='+', choices=['r50', 'r18'], default=['r50', 'r18'], help='step suite: models (default: both)'
    )
    parser.add_argument(
        '--beside',
        nargs='+',
        choices=others,
        default=others,
        help='step suite: further steps to measure (default: all)',
    )
    parser.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        choices=['cpu', 'cuda'],
        help='device to measure on (default: %(default)s)',
    )
    parser.add_argument('--rows', nargs='+', help='growth suite: rows to measure, such as batch_x2 (default: all)')
    parser.add_argument('--repeats', type=int, default=9, help='number of rounds (default: %(default)s)')
    parser.add_argument(
        '--minutes', type=float, default=8, help='no further round starts after this time (default: %(default)s)'
    )
    parser.add_argument('--threads', type=int, default=2, help='number of CPU threads (default: %(default)s)')
    parser.add_argument('--tiny', action='store_true', help='smoke test with very small sizes')
    parser.add_argument('--json', help='also write the results to this file')
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    warnings.filterwarnings('ignore', message='only .* images share batch statistics')
    torch.manual_seed(0)
    if args.device == 'cpu':
        torch.set_num_threads(args.threads)
        keep_freed_memory()  # as tools/train.py does
    deadline = time.monotonic() + 60 * args.minutes
    r50, r18 = Setting(device=args.device), Setting(depth=18, size=128, batch=16, device=args.device)
    if args.tiny:
        r50 = r18 = Setting(depth=18, size=64, batch=4, objects=3, jitter=2, queue=256, device=args.device)
    if args.suite == 'step':
        results = run_step_suite(args, r50, r18, deadline)
    elif args.suite == 'growth':
        setting = r18 if args.tiny else replace(r18, size=64, batch=8)
        results = measure_growth(setting, args.repeats, deadline, args.rows)
    else:
        results = run_gpu_suite(args, deadline)
    if args.json:
        with atomic_write(args.json, 'w') as file:
            json.dump(results, file, indent=2)


if __name__ == '__main__':
    main()
