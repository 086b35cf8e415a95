"""Reads the scalars that a training run logged (``scalars.json`` of mmengine's local visualization backend)."""

import json
from pathlib import Path

import numpy as np

from ccop_mm.utils.errors import InputError


def read_training_log(work_dir: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads all logged scalars of a run as series over the iteration.

    A resumed run has one log file per start. Entries of a later file replace those of earlier files from the first
    iteration of the later file onwards.

    Args:
        work_dir (str | Path): Work directory of tools/train.py.

    Returns:
        dict[str, tuple[np.ndarray, np.ndarray]]: Name of the scalar -> iterations (n,) in ascending order, and values
        (n,) in float64.

    Raises:
        InputError: There is no log, it is empty, or it is not valid JSON.
    """
    rows: list[dict] = []
    for file in _log_files(work_dir):
        new = _read_rows(file)
        if new:
            first = min(row['step'] for row in new)
            rows = [row for row in rows if row['step'] < first] + new
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name != 'step' and isinstance(value, (int, float)):
                values.setdefault(name, {})[row['step']] = value
    if not values:
        raise InputError(f'{work_dir}: the log is empty; wait until the run has logged its first iterations')
    return {
        name: (np.array(sorted(series)), np.array([series[step] for step in sorted(series)], np.float64))
        for name, series in values.items()
    }


def read_log_entries(work_dir: str | Path) -> list[dict]:
    """Reads the log entries of all starts of a run, in chronological order.

    Args:
        work_dir (str | Path): Work directory of tools/train.py.

    Raises:
        InputError: There is no log, or it is not valid JSON.
    """
    return [row for file in _log_files(work_dir) for row in _read_rows(file)]


def read_scalars(work_dir: str | Path) -> list[dict]:
    """Reads the log of the most recent start of a run; returns one dict per log entry, in order.

    Raises:
        InputError: There is no log, or it is not valid JSON.
    """
    return _read_rows(_log_files(work_dir)[-1])


def _log_files(work_dir: str | Path) -> list[Path]:
    """Returns the log of each start of a run, at least one, in chronological order."""
    # The parent directories are named after the start time, so their names sort in chronological order.
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not files:
        raise InputError(f'{work_dir}: no */vis_data/scalars.json found; pass the work directory of tools/train.py')
    return files


def _read_rows(file: Path) -> list[dict]:
    """Reads one log. An invalid last line is skipped: a run that was killed may leave an incomplete one."""
    lines = [line for line in file.read_text(encoding='utf-8').splitlines() if line.strip()]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise InputError(f'{file}: not a log of scalars, line {number} is not JSON ({error})') from None
    return rows
