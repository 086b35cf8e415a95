"""The table and the figure of a study (transfer_study.py)."""

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ccop_mm.evaluation import PointingResult, read_pointing_result
from ccop_mm.fileio import atomic_write
from ccop_mm.visualization import save_figure
from ccop_mm.visualization.palette import COLORS, WIDTH

TITLES = {
    'random': 'random weights',
    'random-bn': 'random weights, batch statistics set',
    'mocov2': 'MoCo v2, same photos seen',
    'mocov2-time': 'MoCo v2, same wall-clock',
    'image': 'CCOP, image loss alone',
    'no-noise': 'CCOP, boxes without noise',
    'no-curriculum': 'CCOP, full noise from the start',
    'no-intra': 'CCOP, no intra-image loss',
    'random-boxes': 'CCOP on random boxes',
    'true-boxes': 'CCOP on annotated boxes',
    'ccop': 'CCOP',
}
#: A color and a marker; the marker alone tells them apart, in grey as well.
STYLES = {
    'random': ('#999999', 'o'),
    'random-bn': (COLORS[6], 'v'),
    'mocov2': (COLORS[1], 's'),
    'mocov2-time': (COLORS[5], 'D'),
    'image': (COLORS[3], 'P'),
    'no-noise': (COLORS[2], 'X'),
    'no-curriculum': (COLORS[4], '<'),
    'no-intra': (COLORS[2], '*'),
    'random-boxes': (COLORS[6], 'p'),
    'true-boxes': (COLORS[3], 'd'),
    'ccop': (COLORS[0], '^'),
}


@dataclass
class Outcome:
    """What one method with one seed came to.

    Attributes:
        method (str): Key of :data:`TITLES`.
        seed (int): Of weights and training.
        pointing (Path): From tools/inspect/pointing.py.
        knn (dict[str, Path]): By stage, from tools/inspect/knn_recall.py.
        cost (dict): ``epochs``, ``steps`` and ``step_s`` of the pre-training; empty without one. ``ratio`` where the
            epochs follow from it: a CCOP step's seconds over a MoCo v2 step's. ``config``: the name of MoCo v2's.
        ap (dict[int, Path]): By per cent of the labels, from tools/test.py.
    """

    method: str
    seed: int
    pointing: Path
    knn: dict[str, Path]
    cost: dict = field(default_factory=dict)
    ap: dict[int, Path] = field(default_factory=dict)


def write_report(out: Path, outcomes: list[Outcome]) -> str:
    """Writes results.md, results.png and results.svg; returns the text."""
    text = '\n\n'.join([pointing_table(outcomes), difference_table(outcomes), knn_table(outcomes), ap_table(outcomes)])
    text = text.rstrip() + '\n'
    with atomic_write(out / 'results.md', 'w') as file:
        file.write(text)
    figure = draw(outcomes)
    for suffix in ('png', 'svg'):
        save_figure(figure, out / f'results.{suffix}')
    return text


def pool_seeds(outcomes: list[Outcome]) -> dict[str, PointingResult]:
    """Per method, each object's hits averaged over the seeds: the views are the same for all of them."""
    by_method = _by_method(outcomes)
    pooled = {}
    for method, group in by_method.items():
        results = [read_pointing_result(outcome.pointing) for outcome in group]
        pooled[method] = results[0]
        pooled[method].hits = {
            level: np.mean([result.hits[level] for result in results], axis=0) for level in results[0].hits
        }
    return pooled


def pointing_table(outcomes: list[Outcome]) -> str:
    """Pointing accuracy by level, with intervals over photos and, with several seeds, the spread over them."""
    pooled = pool_seeds(outcomes)
    reports = {method: result.report() for method, result in pooled.items()}
    levels = _levels(pooled)
    first = next(iter(reports.values()))
    lines = [
        f'Box-query pointing accuracy in %, {first["num_queries"]} queries for {first["num_objects"]} objects of '
        f'{first["num_photos"]} photos, '
        f'95 % interval; chance {100 * first["chance"]:.1f}, always the center {100 * first["center"]:.1f}',
        '',
        f'| method | epochs | s a step | {" | ".join(levels)} |',
        f'|---|---|---|{"---|" * len(levels)}',
    ]
    for method, group in _by_method(outcomes).items():
        report, cost = reports[method], group[0].cost
        cells = [_cell(report, level, [read_pointing_result(one.pointing) for one in group]) for level in levels]
        epochs = f'{cost["epochs"]} | {statistics.mean(one.cost["step_s"] for one in group):.2f}' if cost else '- | -'
        lines.append(f'| {TITLES[method]} | {epochs} | {" | ".join(cells)} |')
    recipes = sorted({one.cost['config'] for one in outcomes if 'config' in one.cost})
    if recipes:
        lines += ['', f'MoCo v2 is by {", ".join(recipes)}.']
    ratios = [one.cost['ratio'] for one in outcomes if 'ratio' in one.cost]
    if ratios:
        lines += ['', f'Same wall-clock: a CCOP step takes {ratios[0]:.2f} times one of MoCo v2, timed in turn.']
    return '\n'.join(lines)


def _cell(report: dict, level: str, results: list[PointingResult]) -> str:
    if level not in report:
        return '-'
    text = f'{100 * report[level]:.1f} ({100 * report[f"{level}_low"]:.1f} to {100 * report[f"{level}_high"]:.1f})'
    if len(results) > 1:
        text += f' +- {100 * statistics.stdev(result.hits[level].mean() for result in results):.1f}'
    return text


def difference_table(outcomes: list[Outcome]) -> str:
    """By how much CCOP is better than each other method, object by object."""
    pooled = pool_seeds(outcomes)
    if 'ccop' not in pooled or len(pooled) == 1:
        return ''
    levels = _levels(pooled)
    lines = [
        'CCOP minus the other, in points, object by object, 95 % interval',
        '',
        f'| other | {" | ".join(levels)} |',
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
        lines.append(f'| {TITLES[method]} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def knn_table(outcomes: list[Outcome]) -> str:
    """Object kNN recall@10 by stage."""
    stages = list(outcomes[0].knn)
    first = _read(outcomes[0].knn[stages[0]])
    lines = [
        f'Object kNN recall@10 in %, {first["num_objects"]} objects of {first["num_classes"]} classes, '
        f'chance {100 * first["chance"]:.1f}',
        '',
        f'| method | {" | ".join(stages)} | embedding |',
        f'|---|{"---|" * (len(stages) + 1)}',
    ]
    for method, group in _by_method(outcomes).items():
        cells = [_spread([_read(one.knn[stage])['backbone@10'] for one in group]) for stage in stages]
        embeddings = [
            report['embedding@10'] for one in group if 'embedding@10' in (report := _read(one.knn[stages[0]]))
        ]
        lines.append(f'| {TITLES[method]} | {" | ".join(cells)} | {_spread(embeddings)} |')
    return '\n'.join(lines)


def ap_table(outcomes: list[Outcome]) -> str:
    """Box AP and AP50 by share of the labels."""
    shares = sorted({share for outcome in outcomes for share in outcome.ap})
    if not shares:
        return ''
    lines = [
        'Faster R-CNN box AP (AP50) in %',
        '',
        f'| method | {" | ".join(f"{share} % of the labels" for share in shares)} |',
        f'|---|{"---|" * len(shares)}',
    ]
    for method, group in _by_method(outcomes).items():
        cells = []
        for share in shares:
            metrics = [_read(one.ap[share]) for one in group if share in one.ap]
            # A detector that finds nothing at all has no metrics.
            ap, ap50 = ([metric.get(f'coco/bbox_{name}', 0.0) for metric in metrics] for name in ('mAP', 'mAP_50'))
            cells.append(f'{_spread(ap)} ({_spread(ap50)})' if metrics else '-')
        lines.append(f'| {TITLES[method]} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def draw(outcomes: list[Outcome]) -> Figure:
    """Pointing accuracy by level, a mark a method, bars for the intervals."""
    pooled = pool_seeds(outcomes)
    levels = _levels(pooled)
    figure = Figure(figsize=(WIDTH, 3.2), facecolor='white', layout='constrained')
    axes = figure.add_subplot()
    width = 0.7 / len(pooled)
    for number, (method, result) in enumerate(pooled.items()):
        report = result.report()
        xs = [index for index, level in enumerate(levels) if level in report]
        ys = np.array([[100 * report[levels[x] + end] for end in ('', '_low', '_high')] for x in xs])
        color, marker = STYLES[method]
        axes.errorbar(
            [x + width * (number - (len(pooled) - 1) / 2) for x in xs],
            ys[:, 0],
            [ys[:, 0] - ys[:, 1], ys[:, 2] - ys[:, 0]],
            fmt=marker,
            color=color,
            markersize=4,
            elinewidth=1,
            label=TITLES[method],
        )
    for name, style, value in (('chance', ':', report['chance']), ("view's center", '--', report['center'])):
        axes.axhline(100 * value, color='0.4', linewidth=0.8, linestyle=style, label=name)
    axes.set_xticks(range(len(levels)), levels)
    axes.set_ylabel('pointing accuracy, %')
    axes.set_ylim(bottom=0)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc='center left', bbox_to_anchor=(1, 0.5))
    return figure


def _by_method(outcomes: list[Outcome]) -> dict[str, list[Outcome]]:
    groups = {}
    for method in TITLES:
        group = [outcome for outcome in outcomes if outcome.method == method]
        if group:
            groups[method] = group
    return groups


def _levels(pooled: dict[str, PointingResult]) -> list[str]:
    return list(dict.fromkeys(level for result in pooled.values() for level in result.hits))


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding='utf-8'))


def _spread(values: list[float]) -> str:
    """Mean and, of several, standard deviation in per cent."""
    if not values:
        return '-'
    text = f'{100 * statistics.mean(values):.1f}'
    return text if len(values) == 1 else f'{text} +- {100 * statistics.stdev(values):.1f}'
