"""A training step beside its floor, in one run: time, memory, arithmetic, stages, and how they grow.

python benchmarks/step.py [--json FILE]                  R50 at 224 px, batch 4, and R18 at 128 px, batch 16
python benchmarks/step.py --suite growth [--json FILE]   one size doubled at a time; precision, layout, compiling
python benchmarks/step.py --suite gpu [--json FILE]      one GPU: R50 at batch 128 and 256 in bfloat16, and growth

The floor is the two encoders alone: query backbone and FPN forward and backward, key backbone and FPN forward. All
steps of a table run in turn, one of each; a ratio is the median of those between neighbours. Memory is what a step
holds at its peak beyond what stays between steps; of it, "extra" is what lies beyond the floor's.

On a CPU all steps keep freed memory, as tools/train.py does. "released_alone" is the released way once more, in a
process of its own with the memory allocator that its users have.
"""

import argparse
import json
import statistics
import time
import warnings

import step_meters as meters
import torch
from step_process import StepElsewhere
from step_variants import VARIANTS, Setting

from ccop_mm.engine.malloc import keep_freed_memory
from ccop_mm.fileio import atomic_write

#: Seconds to leave for compiling two image encoders on a GPU (a guess).
COMPILING = 120


class Table:
    """Steps measured side by side.

    Args:
        steps (dict[str, tuple[str, Setting]]): Row label to variant and setting; the first is what the others are
            divided by.
        repeats (int): Rounds.
        deadline (float): ``time.monotonic()`` at which no further round begins (at least one is made).
    """

    def __init__(self, steps, repeats, deadline):
        self.base = next(iter(steps))
        self.settings = {label: setting for label, (_, setting) in steps.items()}
        built = {label: built_step(variant, setting) for label, (variant, setting) in steps.items()}
        for step in built.values():
            meters.measure(step, 'seconds')  # takes memory, chooses kernels, compiles, fills the optimizer's state
        self.peak, self.resident = (
            {label: meters.measure(step, meter) for label, step in built.items()}
            for meter in ('peak_bytes', 'resident_bytes')
        )
        # Counting turns compiled parts back into single operations, so a compiled step is not counted.
        counted = {label: step for label, step in built.items() if not step.setting.compile}
        self.flop = {label: meters.measure(step, 'flop') for label, step in counted.items()}
        self.wall, self.cpu = ({label: [] for label in steps} for _ in range(2))
        for number in range(repeats):
            if number and time.monotonic() > deadline:
                break
            for label, step in built.items():
                wall, cpu = meters.measure(step, 'seconds')
                self.wall[label].append(wall)
                self.cpu[label].append(cpu)
        self.rounds = len(self.wall[self.base])
        self.built = built

    def ratio(self, label, over, cpu=False):
        """Median of the ratios of neighbours."""
        times = self.cpu if cpu else self.wall
        return statistics.median(a / b for a, b in zip(times[label], times[over], strict=True))

    def images_per_second(self, label):
        """Photos; a photo is two views."""
        return self.settings[label].batch / statistics.median(self.wall[label])

    def extra(self, label):
        """Bytes at the peak beyond the floor's, not counting what stays between steps."""
        return self.peak[label] - self.peak[self.base]

    def show(self, title):
        """Prints it."""
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

    def figures(self):
        """The same under flat names."""
        found = {'rounds': self.rounds}
        for label in self.settings:
            found[f'{label}_seconds'] = statistics.median(self.wall[label])
            found[f'{label}_images_per_second'] = self.images_per_second(label)
            found[f'{label}_peak_mib'] = (self.resident[label] + self.peak[label]) / 2**20
            if label in self.flop:
                found[f'{label}_gflop'] = self.flop[label] / 1e9
            if label != self.base:
                found[f'{label}_over_{self.base}'] = self.ratio(label, self.base)
                found[f'{label}_over_{self.base}_cpu_time'] = self.ratio(label, self.base, cpu=True)
                found[f'{label}_extra_mib'] = self.extra(label) / 2**20
        return found


def built_step(variant, setting):
    """A step, ready to be measured.

    All run in this process, which on the CPU keeps freed memory as tools/train.py does, but for ``released_alone``.
    """
    if variant == 'released_alone':
        return StepElsewhere('released', setting, torch.get_num_threads())
    return VARIANTS[variant](setting)


def shares(step, repeats):
    """Share of each stage of a CCOP step, in percent of the whole: medians over some steps, slightly slowed by it."""
    clock, rounds = meters.Clock(step), []
    for _ in range(repeats):
        wall, _ = meters.seconds(step)
        stages = clock.read()
        rounds.append({**stages, 'rest': wall - sum(stages.values())} | {'': wall})
    return {label: 100 * statistics.median(one[label] / one[''] for one in rounds) for label in rounds[0] if label}


def against_the_floor(title, setting, repeats, deadline, names):
    """The floor, CCOP, and what is asked for between them; returns the figures."""
    table = Table({name: (name, setting) for name in names}, repeats, deadline)
    table.show(title)
    figures = table.figures()
    for name in ('released', 'released_alone'):
        if name in names:
            figures[f'{name}_over_ccop_time'] = table.ratio(name, 'ccop')
            figures[f'{name}_over_ccop_cpu_time'] = table.ratio(name, 'ccop', cpu=True)
            print(f'{name} over ccop, time: {figures[f"{name}_over_ccop_time"]:.2f}', end=', ')
            print(f'CPU time: {figures[f"{name}_over_ccop_cpu_time"]:.2f}')
    if 'released' in names:
        figures['released_over_ccop_extra_memory'] = table.extra('released') / table.extra('ccop')
        held = {name: table.resident[name] + table.peak[name] for name in ('floor', 'released', 'ccop')}
        figures['released_over_ccop_extra_memory_with_state'] = (held['released'] - held['floor']) / (
            held['ccop'] - held['floor']
        )
        for name in ('extra_memory', 'extra_memory_with_state'):
            print(f'released over ccop, {name.replace("_", " ")}: {figures[f"released_over_ccop_{name}"]:.2f}')
    stages = shares(table.built['ccop'], min(repeats, 5))
    print('stages of ccop, %: ' + ', '.join(f'{label} {share:.1f}' for label, share in stages.items()), flush=True)
    figures.update({f'share_{label.replace(" ", "_")}': share for label, share in stages.items()})
    return figures


def growth(setting, repeats, deadline, chosen=None):
    """CCOP with one size doubled, and in other precisions and layouts, over CCOP as it is."""
    sizes = ('batch', 'jitter', 'objects', 'queue')
    rows = {f'{name}_x2': setting.but(**{name: 2 * getattr(setting, name)}) for name in sizes}
    for precision in ('fp32', 'bf16', 'fp16'):
        if precision != setting.precision:
            rows[precision] = setting.but(precision=precision)
    layout = 'channels_first' if setting.channels_last else 'channels_last'
    rows[layout] = setting.but(channels_last=not setting.channels_last)
    rows['compiled'] = setting.but(compile=True)
    figures = {}
    for label, other in rows.items():  # two at a time: each is a model of its own
        if chosen and label not in chosen:
            continue
        reserve = COMPILING if other.compile and setting.device != 'cpu' else 0
        if time.monotonic() + reserve > deadline:
            print(f'\n{label}: not measured, the time is up')
            continue
        meters.free(setting.device)
        try:
            table = Table({'ccop': ('ccop', setting), label: ('ccop', other)}, repeats, deadline)
        except (RuntimeError, torch.OutOfMemoryError) as error:  # a precision or a compiler that is not there
            print(f'\n{label}: not measured ({str(error).splitlines()[0]})')
            continue
        table.show(f'growth: {label}')
        figures.update({f'{label}{name[4:]}': value for name, value in table.figures().items() if name == 'rounds'})
        figures[f'growth_{label}'] = table.ratio(label, 'ccop')
        figures[f'growth_{label}_cpu_time'] = table.ratio(label, 'ccop', cpu=True)
        figures[f'growth_{label}_peak'] = (table.resident[label] + table.peak[label]) / (
            table.resident['ccop'] + table.peak['ccop']
        )
        if label in table.flop and 'ccop' in table.flop:
            figures[f'growth_{label}_flop'] = table.flop[label] / table.flop['ccop']
    return figures


def matrix_rate(device, precision, size):
    """FLOP a second of one large matrix product: what the machine can do at best."""
    dtype = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)[precision]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(6):
        meters.synchronize(device)
        started = time.perf_counter()
        a @ b
        meters.synchronize(device)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times[1:])


def gpu_suite(args, deadline):
    """What a data-centre GPU has to show; ``--tiny`` tries the road on the CPU."""
    setting = Setting(precision='bf16', channels_last=True, device=args.device, batch=128)
    if args.tiny:
        setting = setting.but(depth=18, size=64, batch=4, objects=3, jitter=2, queue=256)
    rate = matrix_rate(args.device, 'bf16', 256 if args.tiny else 8192)
    card = torch.cuda.get_device_name() if args.device != 'cpu' else 'CPU'
    print(f'{card}: {rate / 1e12:.1f} TFLOP/s in bfloat16 matrix products')
    figures, begun = dict(card=card, matrix_tflops=rate / 1e12), time.monotonic()
    share = (deadline - begun) / 4
    for part, batch in enumerate((setting.batch, 2 * setting.batch)):
        # At 256 photos the released way needs tens of GB more; the smaller batch has it.
        names = ('floor', 'moco', 'released', 'ccop') if part == 0 else ('floor', 'ccop')
        label, now = f'batch{batch}', setting.but(batch=batch)
        meters.free(args.device)
        found = against_the_floor(
            f'R{setting.depth}, {setting.size} px, {label}', now, 20, begun + (part + 1) * share, names
        )
        found['ccop_share_of_matrix_rate'] = found['ccop_gflop'] * 1e9 / found['ccop_seconds'] / rate
        print(f'share of the matrix rate: {100 * found["ccop_share_of_matrix_rate"]:.1f} %')
        figures.update({f'{label}_{name}': value for name, value in found.items()})
    figures.update(growth(setting.but(batch=setting.batch // 2), 10, deadline))
    return figures


def parse_args(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    others = [name for name in VARIANTS if name not in ('floor', 'ccop')] + ['released_alone']
    parser.add_argument('--suite', choices=['step', 'growth', 'gpu'], default='step')
    parser.add_argument('--models', nargs='+', choices=['r50', 'r18'], default=['r50', 'r18'], help='of the step suite')
    parser.add_argument('--beside', nargs='+', choices=others, default=others, help='of the step suite: other steps')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--rows', nargs='+', help='of the growth suite, such as batch_x2; all by default')
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--minutes', type=float, default=8, help='no new round of measurements begins after this')
    parser.add_argument('--threads', type=int, default=2, help='on the CPU')
    parser.add_argument('--tiny', action='store_true', help='sizes that only show that the suite runs')
    parser.add_argument('--json', help='also write the figures to this file')
    return parser.parse_args(argv)


def main():
    """Runs a suite."""
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
        figures, begun = {}, time.monotonic()
        # A GPU has torch's allocator in any process: nothing to compare.
        beside = [name for name in args.beside if args.device == 'cpu' or name != 'released_alone']
        for number, (prefix, setting) in enumerate(dict(r50=r50, r18=r18).items()):
            if prefix in args.models:
                until = begun + (deadline - begun) * (number + 1) / 2 if len(args.models) > 1 else deadline
                title = f'R{setting.depth}, {setting.size} px, batch {setting.batch}'
                found = against_the_floor(title, setting, args.repeats, until, ['floor', *beside, 'ccop'])
                # The figures of R50 have plain names.
                figures.update({name if prefix == 'r50' else f'{prefix}_{name}': found[name] for name in found})
    elif args.suite == 'growth':
        figures = growth(r18 if args.tiny else r18.but(size=64, batch=8), args.repeats, deadline, args.rows)
    else:
        figures = gpu_suite(args, deadline)
    if args.json:
        with atomic_write(args.json, 'w') as file:
            json.dump(figures, file, indent=2)


if __name__ == '__main__':
    main()
