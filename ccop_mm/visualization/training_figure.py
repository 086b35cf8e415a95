"""Figures of a training log: all metrics of a run on one page, and the curves of the curriculum (paper, Figure 3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ccop_mm.utils.errors import InputError
from ccop_mm.visualization.figure_file import check_figure_path, save_figure
from ccop_mm.visualization.palette import COLORS, WIDTH

Log = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Panel:
    """Curves that share a pair of axes.

    Attributes:
        title (str): Title of the panel.
        curves (dict[str, str]): Name in the log -> label.
        log_scale (bool): Whether the y axis is logarithmic.
    """

    title: str
    curves: dict[str, str]
    log_scale: bool = False


CURRICULUM = (
    Panel('noise range and minimum IoU', {'zeta': r'$\zeta$', 'beta': r'$\beta$'}),
    Panel('acceptance rate of uniform noise', {'acceptance': 'acceptance'}, log_scale=True),
    Panel('similarity of the hardest candidate', {'hardest_similarity': 'hardest'}),
)
REPORT = (
    Panel('losses', {'loss': 'sum', 'loss_img': 'image', 'loss_obj': 'object', 'loss_intra': 'intra-image'}),
    Panel('similarity of the hardest candidate', {'hardest_similarity': 'hardest'}),
    Panel('effective rank of the newest keys', {'rank_image': 'image', 'rank_object': 'object'}),
    Panel('embedding std of the newest keys', {'embedding_std_image': 'image', 'embedding_std_object': 'object'}),
    Panel('age of the oldest key (iterations)', {'age_image': 'image', 'age_object': 'object'}),
    Panel('objects per image', {'objects_per_image': 'in both views'}),
    Panel('curriculum', {'zeta': r'$\zeta$', 'beta': r'$\beta$', 'acceptance': 'acceptance'}),
    Panel('learning rate', {'lr': 'learning rate'}),
    Panel('seconds per iteration', {'time': 'total', 'data_time': 'data loading'}),
    Panel(
        'pointing game accuracy',
        {f'probe/{level}': level for level in ('C3', 'C4', 'P2', 'P3', 'P4', 'P5')} | {'probe/chance': 'chance'},
    ),
)
#: Names in logs of earlier versions -> current names.
RENAMED = {'spread_image': 'embedding_std_image', 'spread_object': 'embedding_std_object'}
LINES = ('-', '--', '-.', ':', (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2)))

#: Height of a legend row, width of a legend entry without its label, and width of a character, in points.
LEGEND_ROW, LEGEND_ENTRY, LEGEND_CHARACTER = 9.0, 22.0, 3.7


def plot_training_report(log: Log, title: str = '', out: str | Path | None = None) -> Figure:
    """Plots losses, similarities, collapse metrics, queue age and probe results over the iterations on one page.

    Args:
        log (dict): Result of :func:`ccop_mm.utils.train_log.read_training_log`.
        title (str): Title of the figure.
        out (str | Path, optional): Also write the figure to this ``*.png`` or ``*.svg`` file.

    Raises:
        InputError: The suffix of ``out`` is not supported, or the log contains no metric of a pre-training run.
    """
    knn = {name: name.removeprefix('probe/knn_') for name in sorted(log) if name.startswith('probe/knn_')}
    return _plot(log, (*REPORT, Panel('kNN recall', knn)), title, out)


def plot_curriculum_curves(log: Log, title: str = '', out: str | Path | None = None) -> Figure:
    """Plots zeta, beta, the acceptance rate and the hardest candidate's similarity over the iterations.

    Args:
        log (dict): Result of :func:`ccop_mm.utils.train_log.read_training_log`.
        title (str): Title of the figure.
        out (str | Path, optional): Also write the figure to this ``*.png`` or ``*.svg`` file.

    Raises:
        InputError: The suffix of ``out`` is not supported, or the log contains no metric of the curriculum.
    """
    return _plot(log, CURRICULUM, title, out)


def _plot(log: Log, panels: Sequence[Panel], title: str, out: str | Path | None) -> Figure:
    if out is not None:
        check_figure_path(out)
    log = _rename_metrics(log)
    panels = [panel for panel in panels if any(name in log for name in panel.curves)]
    if not panels:
        raise InputError('the log contains no metric to plot; pass the log of a CCOP pre-training run')
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    labels = [[label for name, label in panel.curves.items() if name in log] for panel in panels]
    # Titles of one row are aligned, so each row reserves the height of its tallest legend.
    heights = [
        max(_legend_rows(part) for part in labels[start : start + columns]) * LEGEND_ROW
        for start in range(0, len(panels), columns)
    ]
    height = 1.7 * rows + sum(heights) / 72 + (0.25 if title else 0)
    figure = Figure(figsize=(WIDTH, height), facecolor='white', layout='constrained')
    if title:
        figure.suptitle(title, fontsize=9)
    cells = figure.subplots(rows, columns, squeeze=False).flatten()
    for number, (axes, panel) in enumerate(zip(cells, panels, strict=False)):
        _plot_panel(axes, log, panel, heights[number // columns])
    for axes in cells[len(panels) :]:
        axes.set_axis_off()
    for axes in cells[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel('iteration', fontsize=7)
    if out is not None:
        save_figure(figure, out)
    return figure


def _rename_metrics(log: Log) -> Log:
    """Maps the names of earlier versions to the current ones; joins both if a run was resumed with a newer version."""
    renamed: Log = {}
    for name, (steps, values) in sorted(log.items(), key=lambda item: item[0] not in RENAMED):
        current = RENAMED.get(name, name)
        if current in renamed:
            earlier = renamed[current]
            steps, values = np.concatenate([earlier[0], steps]), np.concatenate([earlier[1], values])
        renamed[current] = steps, values
    return renamed


def _legend_rows(labels: Sequence[str]) -> int:
    """Returns the number of legend rows with which the columns fit the width of a panel; 0 for a single curve."""
    if len(labels) < 2:
        return 0
    lengths = [1 if label.startswith('$') else len(label) for label in labels]
    for rows in range(1, len(labels)):
        columns = [max(lengths[start : start + rows]) for start in range(0, len(labels), rows)]
        if len(columns) * LEGEND_ENTRY + sum(columns) * LEGEND_CHARACTER <= 72 * (WIDTH / 3 - 0.35):
            return rows
    return len(labels)


def _plot_panel(axes: Axes, log: Log, panel: Panel, legend_height: float) -> None:
    """Plots one panel with its legend between the title and the axes, where it cannot cover a curve."""
    shown = [(name, label) for name, label in panel.curves.items() if name in log]
    for number, (name, label) in enumerate(shown):
        steps, values = log[name]
        # Few values get markers, because a line does not show a single value.
        marker = 'o' if len(steps) < 8 else None
        axes.plot(
            steps, values, color=COLORS[number % len(COLORS)], linestyle=LINES[number % len(LINES)], linewidth=1.1,
            marker=marker, markersize=2.5, label=label,
        )  # fmt: skip
    axes.set_title(panel.title, fontsize=8, pad=3 + legend_height)
    axes.tick_params(which='both', labelsize=6)
    axes.spines[['top', 'right']].set_visible(False)
    values = np.concatenate([log[name][1] for name, _ in shown])
    if panel.log_scale and (values > 0).all():
        axes.set_yscale('log')
    elif (values >= 0).all():
        axes.set_ylim(0, max(1e-9, 1.08 * values.max()))
    if len(shown) > 1:
        columns = -(-len(shown) // _legend_rows([label for _, label in shown]))
        axes.legend(
            loc='lower center', bbox_to_anchor=(0.5, 1), ncols=columns, fontsize=6, frameon=False, handlelength=2.2,
            handletextpad=0.4, columnspacing=1, labelspacing=0.2, borderpad=0.1, borderaxespad=0.2,
        )  # fmt: skip
