"""Results of a label-efficiency study: tables, and files in JSON and Markdown."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ccop_mm.evaluation.frozen_detector_ap import METRICS
from ccop_mm.evaluation.frozen_detector_report import mean_interval
from ccop_mm.label_efficiency.runs import Run
from ccop_mm.label_efficiency.search import ChosenRate
from ccop_mm.label_efficiency.splits import Share
from ccop_mm.utils.file_io import atomic_write

#: Metrics with a table each, the most informative with few labels first.
REPORTED = ('AP50', 'AP', 'AP75')


@dataclass(frozen=True)
class FinishedRun:
    """A run and its metrics.

    Args:
        run (Run): The run.
        metrics (dict): AP, AP50 and AP75 in [0, 1], with several classes also ``per_class``.
        diverged (bool): Whether its loss became NaN or infinite.
        seconds (dict[str, float]): Duration of training and test.
    """

    run: Run
    metrics: Mapping[str, Any]
    diverged: bool
    seconds: Mapping[str, float]


@dataclass
class StudyResult:
    """Result of a label-efficiency study; ``str()`` formats it as Markdown.

    Args:
        settings (dict): Detector, data and arguments.
        names (list[str]): Names of the initial weights; differences are from the first.
        shares (list[Share]): Shares of the training images, in ascending order.
        seeds (list[int]): Random seeds.
        rate (float): Learning rate of the detector.
        chosen (dict): (name, number of images) -> learning rate.
        finished (list[FinishedRun]): All finished runs.
        failed (list[tuple[Run, str]]): Failed runs and their logs.
        lines (list[str]): Lines of a dry run.
    """

    settings: dict[str, Any]
    names: list[str]
    shares: list[Share]
    seeds: list[int]
    rate: float
    chosen: dict[tuple[str, int], ChosenRate] = field(default_factory=dict)
    finished: list[FinishedRun] = field(default_factory=list)
    failed: list[tuple[Run, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def values(self, metric: str, name: str, num_images: int) -> dict[int, float]:
        """Returns seed -> metric on the validation data of the final runs of one initial weights at one share."""
        return {
            each.run.seed: each.metrics[metric]
            for each in sorted(self.finished, key=lambda each: each.run.seed)
            if each.run.is_final and (each.run.weights.name, each.run.num_images) == (name, num_images)
        }

    def curves(self, metric: str) -> dict[str, dict[int, list[float]]]:
        """Returns name -> number of images -> metric of each seed, for a figure."""
        return {
            name: {
                share.num_images: list(self.values(metric, name, share.num_images).values()) for share in self.shares
            }
            for name in self.names
        }

    def differences(self, metric: str, name: str, num_images: int) -> dict[int, float]:
        """Returns seed -> difference from the first initial weights, for the seeds that both have."""
        first, own = (self.values(metric, other, num_images) for other in (self.names[0], name))
        return {seed: own[seed] - first[seed] for seed in own if seed in first}

    def __str__(self) -> str:
        return '\n'.join(self.lines) if self.lines else format_report(self)


def format_report(result: StudyResult) -> str:
    """Formats all tables and notes as Markdown, without a trailing newline."""
    tables = [table for metric in REPORTED for table in _metric_tables(result, metric)]
    parts = ['# Label efficiency', _describe_study(result), *tables, _rate_table(result)]
    return '\n\n'.join([*parts, *_notes(result)])


def _describe_study(result: StudyResult) -> str:
    settings = result.settings
    seeds = len(result.seeds)
    interval = 'Mean over the seeds ± half of its 95 % interval (Student).' if seeds > 1 else 'One seed: no intervals.'
    kind = ', all boxes as one class' if settings['class_agnostic'] else ''
    return (
        f'{settings["detector"]}, trained from each initial weights on parts of {settings["num_train_images"]} labeled '
        f'images{kind}, and tested on {settings["num_val_images"]} others. All layers are trained; classes are '
        f'not balanced. {interval}'
    )


def _metric_tables(result: StudyResult, metric: str) -> Iterator[str]:
    header = ['weights', *map(str, result.shares)]

    def row(name: str, values: Callable[[str, str, int], dict[int, float]], sign: str) -> list[str]:
        cells = [list(values(metric, name, share.num_images).values()) for share in result.shares]
        return [name, *(_format(cell, len(result.seeds), sign) for cell in cells)]

    yield f'{metric} in %\n\n{_format_table(header, [row(name, result.values, "") for name in result.names])}'
    if len(result.names) > 1:
        title = f'{metric}: difference from {result.names[0]} in percentage points, paired by seed'
        yield f'{title}\n\n{_format_table(header, [row(name, result.differences, "+") for name in result.names[1:]])}'


def _rate_table(result: StudyResult) -> str:
    rows = []
    for name in result.names:
        cells = []
        for share in result.shares:
            rate = result.chosen.get((name, share.num_images))
            cells.append('-' if rate is None else f'{result.rate * rate.factor:.3g}{" (edge)" if rate.edge else ""}')
        rows.append([name, *cells])
    return f'Learning rate\n\n{_format_table(["weights", *map(str, result.shares)], rows)}'


def _notes(result: StudyResult) -> Iterator[str]:
    chosen = [rate for rate in result.chosen.values() if rate.metric]
    if chosen:
        metrics = ' or '.join(sorted({rate.metric for rate in chosen}))
        yield (
            f'Each learning rate has the highest {metrics} with seed {result.seeds[0]} on '
            f'{result.settings["num_selection_images"]} training images that these runs were not trained on.'
        )
    if any(rate.edge for rate in chosen):
        yield (
            '(edge): the lowest or highest of the learning rates that were tried is the best, so that another one may '
            'be better: add factors to --lr-factors, or pass --extend.'
        )
    blind = [
        f'{name} at {number}'
        for (name, number), rate in result.chosen.items()
        if not any((rate.values or {1: 1}).values())
    ]
    if blind:
        yield f'No learning rate found an object: {", ".join(blind)} images. Those of the config are used.'
    diverged = [str(each.run) for each in result.finished if each.diverged and each.run.is_final]
    if diverged:
        yield f'The loss became NaN or infinite, which counts as an AP of 0: {"; ".join(diverged)}.'
    if result.failed:
        yield 'Failed runs, without which the tables are computed:\n\n' + '\n'.join(
            f'* {run}: {log}' for run, log in result.failed
        )


def _format(values: Sequence[float], num_seeds: int, sign: str = '') -> str:
    if not values:
        return '-'
    mean, half_width = mean_interval(values)
    interval = '' if half_width is None else f' ± {100 * half_width:.1f}'
    missing = '' if len(values) == num_seeds else f' ({len(values)} of {num_seeds} seeds)'
    return f'{100 * mean:{sign}.1f}{interval}{missing}'


def _format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f'| {" | ".join(row)} |' for row in (header, *rows)]
    return '\n'.join([lines[0], f'|{"---|" * len(header)}', *lines[1:]])


def write_report(result: StudyResult, folder: Path) -> None:
    """Writes ``results.json`` with everything, and ``results.md`` with the tables."""
    content = dict(
        settings=result.settings,
        weights=result.names,
        shares=[asdict(share) for share in result.shares],
        seeds=result.seeds,
        learning_rates=[
            dict(
                weights=name,
                num_images=number,
                learning_rate=result.rate * rate.factor,
                **{**asdict(rate), 'values': {f'{factor:g}': value for factor, value in (rate.values or {}).items()}},
            )
            for (name, number), rate in result.chosen.items()
        ],
        runs=[
            dict(
                _describe_run(each.run, result.rate), metrics=each.metrics, diverged=each.diverged, seconds=each.seconds
            )
            for each in result.finished
        ],
        failed=[dict(_describe_run(run, result.rate), log=log) for run, log in result.failed],
        summary={
            metric: [
                dict(
                    weights=name,
                    num_images=share.num_images,
                    **_summarize('', list(result.values(metric, name, share.num_images).values())),
                    **_summarize('difference_', list(result.differences(metric, name, share.num_images).values())),
                )
                for name in result.names
                for share in result.shares
            ]
            for metric in METRICS
        },
    )
    with atomic_write(folder / 'results.json', 'w') as file:
        json.dump(content, file, indent=1)
    with atomic_write(folder / 'results.md', 'w') as file:
        file.write(f'{format_report(result)}\n')


def _describe_run(run: Run, rate: float) -> dict[str, Any]:
    return dict(
        name=run.name,
        weights=run.weights.name,
        num_images=run.num_images,
        learning_rate=rate * run.factor,
        seed=run.seed,
        iterations=run.iterations,
        measured_on='val' if run.is_final else 'selection',
    )


def _summarize(prefix: str, values: Sequence[float]) -> dict[str, float | None]:
    mean, half_width = mean_interval(values) if values else (None, None)
    return {f'{prefix}mean': mean, f'{prefix}half_width': half_width}
