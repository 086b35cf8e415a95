"""Results of the frozen-detector probe: tables, differences between models, and files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ccop_mm.evaluation.frozen_detector_ap import METRICS
from ccop_mm.utils.coco_json import read_json
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write


@dataclass
class FrozenDetectorResult:
    """Box AP of heads that were trained on the features of a frozen network.

    Attributes:
        settings (dict[str, Any]): Levels, numbers of images, and arguments of the measurement.
        seeds (list[int]): Random seed of each head.
        metrics (dict[str, dict[str, list[float]]]): Task -> AP, AP50 or AP75 -> value of each seed in [0, 1].
        detections (dict[str, list[list[dict]]]): Task -> detections of each seed, in COCO's format of results.
        seconds (dict[str, float]): Duration of computing the features and of training and evaluating all heads.
    """

    settings: dict[str, Any]
    seeds: list[int]
    metrics: dict[str, dict[str, list[float]]]
    detections: dict[str, list[list[dict[str, Any]]]]
    seconds: dict[str, float]


def merge_results(results: Sequence[FrozenDetectorResult]) -> FrozenDetectorResult:
    """Joins results of the same measurement with other seeds, such as those of several random networks."""
    first = results[0]
    return FrozenDetectorResult(
        settings=first.settings,
        seeds=[seed for result in results for seed in result.seeds],
        metrics={
            task: {name: [value for result in results for value in result.metrics[task][name]] for name in METRICS}
            for task in first.metrics
        },
        detections={task: [part for result in results for part in result.detections[task]] for task in first.metrics},
        seconds={name: sum(result.seconds[name] for result in results) for name in first.seconds},
    )


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Computes a mean and half the width of its 95 % confidence interval by Student's t; None for a single value."""
    if len(values) < 2:
        return float(np.mean(values)), None
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1)) * error


def format_frozen_detector_report(result: FrozenDetectorResult) -> str:
    """Formats a result as a text table in percent, without a trailing newline."""
    settings = result.settings
    levels = ', '.join(settings['levels'])
    seeds = f', mean of {len(result.seeds)} seeds with its 95 % interval' if len(result.seeds) > 1 else ''
    lines = [
        f'frozen detector, AP in % on {levels} of {settings["num_images"]} images, trained on '
        f'{settings["num_train_images"]}{seeds}',
        ''.join(['         ', *(f'{name:>14}' for name in METRICS)]),
    ]
    for task, metrics in result.metrics.items():
        cells = [_format_mean(*mean_interval(metrics[name])) for name in METRICS]
        lines.append(''.join([f'{task:>9}', *(f'{cell:>14}' for cell in cells)]))
    return '\n'.join(lines)


def format_difference(result: FrozenDetectorResult, report: dict[str, Any]) -> str:
    """Formats the difference from another model's report, paired by seed, as a text table in percentage points.

    Args:
        result (FrozenDetectorResult): Result.
        report (dict): Other result, from :func:`read_report`.

    Returns:
        str: A row per task that both contain, without a trailing newline.

    Raises:
        InputError: The reports have no seed and task in common, or other images.
    """
    for name in ('num_images', 'num_train_images', 'size'):
        if report['settings'].get(name) != result.settings[name]:
            raise InputError(
                f'the other report has {name} {report["settings"].get(name)}, this one {result.settings[name]}; they '
                'cannot be compared'
            )
    seeds = [seed for seed in result.seeds if seed in report['seeds']]
    tasks = [task for task in result.metrics if task in report['metrics']]
    if not seeds or not tasks:
        raise InputError('the reports have no seed or no task in common and cannot be compared')
    lines = []
    for task in tasks:
        cells = []
        for name in METRICS:
            pairs = [
                (
                    result.metrics[task][name][result.seeds.index(seed)],
                    report['metrics'][task][name][report['seeds'].index(seed)],
                )
                for seed in seeds
            ]
            cells.append(_format_mean(*mean_interval([value - other for value, other in pairs]), sign='+'))
        lines.append(''.join([f'{task:>9}', *(f'{cell:>14}' for cell in cells)]))
    return '\n'.join(lines)


def _format_mean(mean: float, half_width: float | None, sign: str = '') -> str:
    interval = '' if half_width is None else f' ± {100 * half_width:.1f}'
    return f'{100 * mean:{sign}.1f}{interval}'


def write_report(result: FrozenDetectorResult, path: str | Path) -> None:
    """Writes settings, seeds, metrics and durations as JSON, atomically; without the detections."""
    report = dict(settings=result.settings, seeds=result.seeds, metrics=result.metrics, seconds=result.seconds)
    with atomic_write(path, 'w') as file:
        json.dump(report, file, indent=1)


def read_report(path: str | Path) -> dict[str, Any]:
    """Reads a file written by :func:`write_report`.

    Raises:
        InputError: The file is missing or is not such a report.
    """
    report = read_json(path)
    if not _is_report(report):
        raise InputError(f'{path} is not a report of tools/analysis_tools/frozen_detector.py --json')
    return report


def _is_report(report: dict[str, Any]) -> bool:
    seeds, metrics = report.get('seeds'), report.get('metrics')
    if not isinstance(seeds, list) or not isinstance(metrics, dict) or not isinstance(report.get('settings'), dict):
        return False
    columns = [
        values.get(name) if isinstance(values, dict) else None for values in metrics.values() for name in METRICS
    ]
    return all(
        isinstance(column, list) and len(column) == len(seeds) and all(isinstance(value, float) for value in column)
        for column in columns
    )
