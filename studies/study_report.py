"""Tables and figure of a study (transfer_study.py).

python studies/study_report.py studies/results/voc_animals_small.json docs/figures/pointing.png

plots the pointing game accuracy of a committed result file: method -> output of tools/analysis_tools/pointing.py.
"""

import argparse
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from study_methods import METHODS

from ccop_mm.evaluation import PointingResult, read_pointing_result
from ccop_mm.evaluation.frozen_detector_report import mean_interval
from ccop_mm.utils.file_io import atomic_write
from ccop_mm.visualization import save_figure
from ccop_mm.visualization.palette import WIDTH


@dataclass
class RunResult:
    """Results of one method with one seed.

    Attributes:
        method (str): Key of :data:`METHODS`.
        seed (int): Random seed of the weights and of the training.
        pointing (Path): Output of tools/analysis_tools/pointing.py.
        knn (dict[str, Path]): Stage -> output of tools/analysis_tools/knn_recall.py.
        cost (dict): ``epochs``, ``steps`` and ``step_s`` (seconds per step) of the pre-training; empty without
            pre-training. MoCo v2 also has ``config``, the name of its config, and ``mocov2-time`` has ``ratio``, the
            time of a CCOP step divided by that of a MoCo v2 step.
        frozen (dict[int, dict[str, Path]]): Percentage of the labels -> ``'backbone'`` or ``'neck'`` -> output of
            tools/analysis_tools/frozen_detector.py.
    """

    method: str
    seed: int
    pointing: Path
    knn: dict[str, Path]
    cost: dict = field(default_factory=dict)
    frozen: dict[int, dict[str, Path]] = field(default_factory=dict)


def write_report(out: Path, results: list[RunResult], detectors: Path | None = None) -> str:
    """Writes results.md, results.png and results.svg to ``out``.

    Args:
        out (Path): Output folder.
        results (list[RunResult]): Results of all runs.
        detectors (Path, optional): results.md of tools/analysis_tools/label_efficiency.py, which is appended.

    Returns:
        str: Text of results.md.
    """
    tables = [pointing_table(results), difference_table(results), knn_table(results)]
    tables += [frozen_table(results, features) for features in ('backbone', 'neck')]
    if detectors is not None:
        tables.append(detectors.read_text(encoding='utf-8').strip())
    text = '\n\n'.join(table for table in tables if table) + '\n'
    with atomic_write(out / 'results.md', 'w') as file:
        file.write(text)
    figure = plot_pointing({method: result.report() for method, result in pool_seeds(results).items()})
    for suffix in ('png', 'svg'):
        save_figure(figure, out / f'results.{suffix}')
    return text


def pool_seeds(results: list[RunResult]) -> dict[str, PointingResult]:
    """Averages the hits of each query over the seeds of a method; the views are the same for all seeds."""
    pooled = {}
    for method, group in _group_by_method(results).items():
        runs = [read_pointing_result(result.pointing) for result in group]
        pooled[method] = runs[0]
        pooled[method].hits = {level: np.mean([run.hits[level] for run in runs], axis=0) for level in runs[0].hits}
    return pooled


def pointing_table(results: list[RunResult]) -> str:
    """Formats pointing game accuracy by level, with confidence intervals and the standard deviation over seeds."""
    pooled = pool_seeds(results)
    reports = {method: result.report() for method, result in pooled.items()}
    levels = _levels(pooled)
    first = next(iter(reports.values()))
    lines = [
        f'Pointing game accuracy in %: {first["num_queries"]} queries for {first["num_objects"]} objects in '
        f'{first["num_images"]} images; 95 % interval over images; with several seeds: +- standard deviation over '
        f'seeds. Random point: {100 * first["chance"]:.1f}; center of the view: {100 * first["center"]:.1f}',
        '',
        f'| method | epochs | s per step | {" | ".join(levels)} |',
        f'|---|---|---|{"---|" * len(levels)}',
    ]
    for method, group in _group_by_method(results).items():
        report, cost = reports[method], group[0].cost
        runs = [read_pointing_result(result.pointing) for result in group]
        cells = [_format_accuracy(report, level, runs) for level in levels]
        epochs = f'{cost["epochs"]} | {statistics.mean(one.cost["step_s"] for one in group):.2f}' if cost else '- | -'
        lines.append(f'| {METHODS[method].title} | {epochs} | {" | ".join(cells)} |')
    configs = sorted({result.cost['config'] for result in results if 'config' in result.cost})
    if configs:
        lines += ['', f'MoCo v2 config: {", ".join(configs)}.']
    ratios = [result.cost['ratio'] for result in results if 'ratio' in result.cost]
    if ratios:
        lines += ['', f'Same training time: a CCOP step takes {ratios[0]:.2f} times as long as a MoCo v2 step.']
    return '\n'.join(lines)


def _format_accuracy(report: dict, level: str, runs: list[PointingResult]) -> str:
    if level not in report:
        return '-'
    text = f'{100 * report[level]:.1f} ({100 * report[f"{level}_low"]:.1f} to {100 * report[f"{level}_high"]:.1f})'
    if len(runs) > 1:
        text += f' +- {100 * statistics.stdev(run.hits[level].mean() for run in runs):.1f}'
    return text


def difference_table(results: list[RunResult]) -> str:
    """Formats the difference between CCOP and every other method, paired by object; empty without CCOP."""
    pooled = pool_seeds(results)
    if 'ccop' not in pooled or len(pooled) == 1:
        return ''
    levels = _levels(pooled)
    lines = [
        'CCOP minus the other method, in percentage points, paired by object; 95 % interval over images',
        '',
        f'| other method | {" | ".join(levels)} |',
        f'|---|{"---|" * len(levels)}',
    ]
    for method, result in pooled.items():
        if method == 'ccop':
            continue
        cells = []
        for level in levels:
            if level not in result.hits:
                cells.append('-')
                continue
            gain, low, high = (100 * value for value in pooled['ccop'].difference(result, level))
            cells.append(f'{gain:+.1f} ({low:+.1f} to {high:+.1f})')
        lines.append(f'| {METHODS[method].title} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def knn_table(results: list[RunResult]) -> str:
    """Formats object kNN recall@10 by backbone stage, and of the embedding."""
    stages = list(results[0].knn)
    first = _read_json(results[0].knn[stages[0]])
    lines = [
        f'Object kNN recall@10 in %: {first["num_objects"]} objects of {first["num_classes"]} classes; '
        f'chance: {100 * first["chance"]:.1f}',
        '',
        f'| method | {" | ".join(stages)} | embedding |',
        f'|---|{"---|" * (len(stages) + 1)}',
    ]
    for method, group in _group_by_method(results).items():
        cells = [_format_percent([_read_json(one.knn[stage])['backbone@10'] for one in group]) for stage in stages]
        reports = [_read_json(one.knn[stages[0]]) for one in group]
        embedding = _format_percent([report['embedding@10'] for report in reports if 'embedding@10' in report])
        lines.append(f'| {METHODS[method].title} | {" | ".join(cells)} | {embedding} |')
    return '\n'.join(lines)


def frozen_table(results: list[RunResult], features: str) -> str:
    """Formats the frozen-detector probe, and CCOP minus the other methods paired by seed; empty without results.

    Args:
        results (list[RunResult]): Results of all runs.
        features (str): ``'backbone'`` or ``'neck'``.
    """
    reports: dict[tuple[int, str], dict[int, dict]] = {}  # (percentage, method) -> seed -> report
    for result in results:
        for percent, paths in result.frozen.items():
            if features in paths:
                reports.setdefault((percent, result.method), {})[result.seed] = _read_json(paths[features])
    if not reports:
        return ''
    first = next(iter(next(iter(reports.values())).values()))
    columns = [(task, metric) for task in first['metrics'] for metric in ('AP', 'AP50', 'AP75')]
    lines = [
        f'Frozen detector on the {features} ({", ".join(first["settings"]["levels"])}), AP in %: all boxes as one '
        'class ("objects"), mean of the classes ("classes"); with several seeds: mean and its 95 % interval',
        '',
        f'| labels | method | {" | ".join(f"{task} {metric}" for task, metric in columns)} |',
        f'|---|---|{"---|" * len(columns)}',
    ]
    order = [(percent, method) for percent in sorted({key[0] for key in reports}) for method in METHODS]
    for percent, method in (key for key in order if key in reports):
        values = _frozen_values(reports[percent, method], columns)
        cells = [_format_interval(list(values[column].values())) for column in columns]
        lines.append(f'| {percent} % | {METHODS[method].title} | {" | ".join(cells)} |')
    for percent, method in (key for key in order if key in reports and key[1] != 'ccop'):
        ccop = _frozen_values(reports.get((percent, 'ccop'), {}), columns)
        other = _frozen_values(reports[percent, method], columns)
        gains = {
            column: [ccop[column][seed] - value for seed, value in other[column].items() if seed in ccop[column]]
            for column in columns
        }
        if all(gains.values()):
            cells = [_format_interval(gains[column], sign='+') for column in columns]
            lines.append(f'| {percent} % | CCOP minus {METHODS[method].title} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def _frozen_values(reports: dict[int, dict], columns: list[tuple[str, str]]) -> dict[tuple[str, str], dict[int, float]]:
    """Returns (task, metric) -> seed -> value of the reports of one method."""
    return {
        (task, metric): {seed: report['metrics'][task][metric][0] for seed, report in reports.items()}
        for task, metric in columns
    }


def plot_pointing(reports: dict[str, dict[str, float]]) -> Figure:
    """Plots pointing game accuracy by level: one marker per method, error bars for the intervals.

    Args:
        reports (dict[str, dict[str, float]]): Method -> :meth:`PointingResult.report`.
    """
    names = [name for report in reports.values() for name in report if name.endswith('_low')]
    levels = list(dict.fromkeys(name.removesuffix('_low') for name in names))
    figure = Figure(figsize=(WIDTH, 3.2), facecolor='white', layout='constrained')
    axes = figure.add_subplot()
    width = 0.7 / len(reports)
    for number, (method, report) in enumerate(reports.items()):
        xs = [index for index, level in enumerate(levels) if level in report]
        ys = np.array([[100 * report[levels[x] + end] for end in ('', '_low', '_high')] for x in xs])
        axes.errorbar(
            [x + width * (number - (len(reports) - 1) / 2) for x in xs],
            ys[:, 0],
            [ys[:, 0] - ys[:, 1], ys[:, 2] - ys[:, 0]],
            fmt=METHODS[method].marker,
            color=METHODS[method].color,
            markersize=4,
            elinewidth=1,
            label=METHODS[method].title,
        )
    for name, style, value in (
        ('random point', ':', report['chance']),
        ('center of the view', '--', report['center']),
    ):
        axes.axhline(100 * value, color='0.4', linewidth=0.8, linestyle=style, label=name)
    axes.set_xticks(range(len(levels)), levels)
    axes.set_ylabel('pointing game accuracy, %')
    axes.set_ylim(bottom=0)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc='center left', bbox_to_anchor=(1, 0.5))
    return figure


def _group_by_method(results: list[RunResult]) -> dict[str, list[RunResult]]:
    """Groups results by method, in the order of :data:`METHODS`."""
    groups = {method: [result for result in results if result.method == method] for method in METHODS}
    return {method: group for method, group in groups.items() if group}


def _levels(pooled: dict[str, PointingResult]) -> list[str]:
    return list(dict.fromkeys(level for result in pooled.values() for level in result.hits))


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding='utf-8'))


def _format_percent(values: list[float]) -> str:
    """Formats the mean in %, and with several values the standard deviation."""
    if not values:
        return '-'
    text = f'{100 * statistics.mean(values):.1f}'
    return text if len(values) == 1 else f'{text} +- {100 * statistics.stdev(values):.1f}'


def _format_interval(values: list[float], sign: str = '') -> str:
    """Formats the mean in %, and with several values its 95 % interval by Student's t."""
    mean, half_width = mean_interval(values)
    text = f'{100 * mean:{sign}.1f}'
    return text if half_width is None else f'{text} ± {100 * half_width:.1f}'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('reports', type=Path, help='json file: method -> report')
    parser.add_argument('out', type=Path, help='figure to write (.png or .svg)')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    save_figure(plot_pointing(_read_json(args.reports)), args.out)


if __name__ == '__main__':
    main()
