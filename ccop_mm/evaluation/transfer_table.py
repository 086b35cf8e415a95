"""Table of AP, AP50 and AP75 from the work directories of detectors."""

from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.train_log import read_log_entries

#: Metrics of COCO evaluators in column order: name in the log -> name in the table.
KINDS = {'bbox': 'box', 'segm': 'mask', 'keypoints': 'keypoint'}
SUFFIXES = {'': 'AP', '_50': 'AP50', '_75': 'AP75'}


@dataclass(frozen=True)
class Run:
    """Latest evaluation of a training run.

    Attributes:
        name (str): Name of the work directory.
        init (str): File name of the initial checkpoint, ``'random'``, or ``'?'`` if no config was found.
        step (int): Iteration (or epoch) of the last evaluation.
        last_step (int | None): Last iteration (or epoch) of the schedule; None if no config was found.
        metrics (dict[str, float]): Name such as ``'bbox_mAP_50'`` -> AP in [0, 1].
    """

    name: str
    init: str
    step: int
    last_step: int | None
    metrics: dict[str, float]

    @property
    def finished(self) -> bool:
        """Whether the last evaluation was made at the end of the schedule."""
        return self.last_step is None or self.step >= self.last_step


def read_run(work_dir: str | Path) -> Run:
    """Reads the last evaluation of a training run, including all resumptions.

    Args:
        work_dir (str | Path): Work directory of tools/train.py.

    Raises:
        InputError: The directory does not exist or contains no evaluation.
    """
    work_dir = Path(work_dir)
    if not work_dir.is_dir():
        raise InputError(f'{work_dir} is not a directory; pass work directories of tools/train.py')
    evaluations = [
        entry
        for entry in read_log_entries(work_dir)
        if 'step' in entry and any(key.startswith('coco/') for key in entry)
    ]
    if not evaluations:
        raise InputError(
            f'{work_dir}: no evaluation of a detector found in */vis_data/scalars.json; wait until the run has '
            'evaluated, or pass the work directory of a detector'
        )
    latest = evaluations[-1]
    metrics = {key.removeprefix('coco/'): value for key, value in latest.items() if key.startswith('coco/')}
    init, last_step = _read_schedule(work_dir)
    return Run(work_dir.resolve().name, init, latest['step'], last_step, metrics)


def _read_schedule(work_dir: Path) -> tuple[str, int | None]:
    """Reads the initial checkpoint and the last step from the configs that mmengine wrote to the work directory."""
    dumped = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not dumped:
        return '?', None
    cfg = Config.fromfile(dumped[-1], import_custom_modules=False)
    # Resuming removes the initializer from the config, so it is read from the log of the first start.
    starts = sorted(work_dir.glob('*/vis_data/config.py'))
    first = Config.fromfile(starts[0], import_custom_modules=False) if starts else cfg
    init = first.model.get('init_cfg')
    name = Path(init['checkpoint']).name if isinstance(init, dict) and init.get('checkpoint') else 'random'
    loop = cfg.get('train_cfg') or {}
    return name, loop.get('max_iters') or loop.get('max_epochs')


def format_table(runs: list[Run], style: str = 'text') -> str:
    """Formats one row per run, with AP in percent to one decimal; ``-`` marks a metric that a run does not have.

    Args:
        runs (list[Run]): Runs in row order.
        style (str): ``'text'``, ``'markdown'`` or ``'csv'``.

    Returns:
        str: The table. The first two styles append one line for each run that has not finished.
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
        # pycocotools returns -1 for a metric without ground truth.
        cells = ['-' if value is None or value < 0 else f'{100 * value:.1f}' for value in values]
        rows.append([run.name, run.init, f'{run.step}{"" if run.finished else "*"}', *cells])
    if style == 'csv':
        return '\n'.join(','.join(row) for row in rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    # Names are left-aligned, numbers right-aligned.
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
