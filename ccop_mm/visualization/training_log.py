"""What a training run logged, over all its resumptions."""

import json
from pathlib import Path

import numpy as np

from ccop_mm.errors import InputError


def read_training_log(work_dir: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every number that mmengine's local backend wrote, by name, over the iteration.

    A run that was killed and resumed has a file each time; what the later one logged from its first iteration on
    replaces what the earlier one did.

    Args:
        work_dir (str | Path): The folder that tools/train.py wrote to.

    Returns:
        dict[str, tuple[np.ndarray, np.ndarray]]: Name -> iterations (n,) in ascending order and values (n,).

    Raises:
        InputError: If there is no log, or it is none.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))  # their folders' names are times
    if not files:
        raise InputError(f'{work_dir}: holds no */vis_data/scalars.json; name the work folder of tools/train.py')
    rows: list[dict] = []
    for file in files:
        try:
            new = [json.loads(line) for line in file.read_text(encoding='utf-8').splitlines() if line.strip()]
        except ValueError as error:
            raise InputError(f'{file}: not a log of scalars ({error})') from None
        if new:
            first = min(row['step'] for row in new)
            rows = [row for row in rows if row['step'] < first] + new
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name != 'step' and isinstance(value, (int, float)):
                values.setdefault(name, {})[row['step']] = value
    if not values:
        raise InputError(f'{work_dir}: nothing has been logged yet')
    return {
        name: (np.array(sorted(series)), np.array([series[step] for step in sorted(series)], np.float64))
        for name, series in values.items()
    }
