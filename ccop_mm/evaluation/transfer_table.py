"""The paper's kind of table from the work folders of detectors: AP, AP50, AP75 of boxes and masks."""

import json
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from ccop_mm.errors import InputError

#: Metrics of COCO evaluators, in the order of the columns: what the log calls them, what the table does.
KINDS = {'bbox': 'box', 'segm': 'mask', 'keypoints': 'keypoint'}
SUFFIXES = {'': 'AP', '_50': 'AP50', '_75': 'AP75'}


@dataclass(frozen=True)
class Run:
    """What is known of one run.

    Attributes:
        name: Of its work folder.
        init: What it started from: the file's name, ``'random'``, or ``'?'`` if there is no config.
        step: Iteration (or epoch) of the last evaluation.
        last_step: Where training was to end; None if there is no config.
        metrics: ``'bbox_mAP_50'`` -> AP in [0, 1].
    """

    name: str
    init: str
    step: int
    last_step: int | None
    metrics: dict[str, float]

    @property
    def finished(self) -> bool:
        """Whether the last evaluation is the one at the end of training."""
        return self.last_step is None or self.step >= self.last_step


def read_run(work_dir: str | Path) -> Run:
    """Reads the last evaluation of a training run, its resumptions included.

    Args:
        work_dir (str | Path): The folder that tools/train.py wrote to.

    Raises:
        InputError: The folder is absent or holds no evaluation.
    """
    work_dir = Path(work_dir)
    if not work_dir.is_dir():
        raise InputError(f'{work_dir} is not a folder: name work folders of tools/train.py')
    # One log for each start, named by its time. The last evaluation is that of the weights that are there now.
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    evaluations = [entry for log in logs for entry in _evaluations(log)]
    if not evaluations:
        raise InputError(
            f'{work_dir} holds no evaluation of a detector (*/vis_data/scalars.json): did it train to one?'
        )
    latest = evaluations[-1]
    metrics = {key.removeprefix('coco/'): value for key, value in latest.items() if key.startswith('coco/')}
    init, last_step = _plan(work_dir)
    return Run(work_dir.resolve().name, init, latest['step'], last_step, metrics)


def _evaluations(log: Path) -> list[dict]:
    """The lines of a log that hold a COCO evaluation. The last line may be torn: the run may have been killed."""
    found = []
    for line in log.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if 'step' in entry and any(key.startswith('coco/') for key in entry):
            found.append(entry)
    return found


def _plan(work_dir: Path) -> tuple[str, int | None]:
    """What the run's dumped config says: where it started from, and its last step."""
    dumped = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not dumped:
        return '?', None
    cfg = Config.fromfile(dumped[-1], import_custom_modules=False)
    # A resumed run's config has no initializer; the first start's log has.
    starts = sorted(work_dir.glob('*/vis_data/config.py'))
    first = Config.fromfile(starts[0], import_custom_modules=False) if starts else cfg
    init = first.model.get('init_cfg')
    name = Path(init['checkpoint']).name if isinstance(init, dict) and init.get('checkpoint') else 'random'
    loop = cfg.get('train_cfg') or {}
    return name, loop.get('max_iters') or loop.get('max_epochs')


def format_table(runs: list[Run], style: str = 'text') -> str:
    """A row for each run, AP in percent with one decimal, as papers print it; ``-`` where a run has no such metric.

    Args:
        runs (list[Run]): In the order of the rows.
        style (str): ``'text'``, ``'markdown'`` or ``'csv'``.

    Returns:
        str: The table, and in the first two styles a line for each run whose training has not ended.
    """
    columns = [
        (f'{kind}_mAP{suffix}', f'{title} {metric}')
        for kind, title in KINDS.items()
        for suffix, metric in SUFFIXES.items()
        if any(f'{kind}_mAP' in run.metrics for run in runs)
    ]
    rows = [['run', 'from', 'step', *(title for _, title in columns)]]
    for run in runs:
        values = [run.metrics.get(key) for key, _ in columns]
        # COCO's evaluator says -1 where there is nothing to find.
        cells = ['-' if value is None or value < 0 else f'{100 * value:.1f}' for value in values]
        rows.append([run.name, run.init, f'{run.step}{"" if run.finished else "*"}', *cells])
    if style == 'csv':
        return '\n'.join(','.join(row) for row in rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    # Names to the left, numbers to the right.
    lines = [
        [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    if style == 'markdown':
        rule = ['-' * width if column < 2 else f'{"-" * (width - 1)}:' for column, width in enumerate(widths)]
        text = '\n'.join(f'| {" | ".join(line)} |' for line in [lines[0], rule, *lines[1:]])
    else:
        text = '\n'.join('  '.join(line).rstrip() for line in lines)
    unfinished = [f'* {run.name}: step {run.step} of {run.last_step}, not finished' for run in runs if not run.finished]
    return '\n'.join([text, *([''] if unfinished else []), *unfinished])
