"""A training run as one page of curves, and the curriculum's curves alone (paper, Figure 3)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ccop_mm.errors import InputError
from ccop_mm.visualization.figure_file import check_figure_path, save_figure
from ccop_mm.visualization.palette import COLORS, WIDTH

Log = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Panel:
    """Curves that share a pair of axes.

    Attributes:
        title (str): Above them.
        curves (dict[str, str]): Name in the log -> label.
        log_scale (bool): Whether the values' axis is logarithmic.
    """

    title: str
    curves: dict[str, str]
    log_scale: bool = False


CURRICULUM = (
    Panel('noise range and IoU floor', {'zeta': r'$\zeta$', 'beta': r'$\beta$'}),
    Panel('share of plain draws accepted', {'acceptance': 'acceptance'}, log_scale=True),
    Panel('similarity of the hardest candidate', {'hardest_similarity': 'hardest'}),
)
REPORT = (
    Panel('losses', {'loss': 'sum', 'loss_img': 'image', 'loss_obj': 'object', 'loss_intra': 'intra-image'}),
    Panel('similarity of the hardest candidate', {'hardest_similarity': 'hardest'}),
    Panel('effective rank of the newest keys', {'rank_image': 'image', 'rank_object': 'object'}),
    Panel('spread of the newest keys', {'spread_image': 'image', 'spread_object': 'object'}),
    Panel('age of the oldest key, iterations', {'age_image': 'image', 'age_object': 'object'}),
    Panel('objects a photo', {'objects_per_image': 'in both views'}),
    Panel('curriculum', {'zeta': r'$\zeta$', 'beta': r'$\beta$', 'acceptance': 'acceptance'}),
    Panel('learning rate', {'lr': 'learning rate'}),
    Panel('seconds an iteration', {'time': 'all', 'data_time': 'waiting for data'}),
    Panel(
        'pointing accuracy',
        {f'probe/{level}': level for level in ('C3', 'C4', 'P2', 'P3', 'P4', 'P5')} | {'probe/chance': 'chance'},
    ),
)
LINES = ('-', '--', '-.', ':', (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2)))


def draw_training_report(log: Log, title: str = '', out: str | Path | None = None) -> Figure:
    """Losses, similarities, signs of collapse, queue age and probes over the iterations, on one page.

    Args:
        log (dict): From :func:`ccop_mm.visualization.training_log.read_training_log`.
        title (str): Above all.
        out (str | Path, optional): Also write the figure to this ``*.png`` or ``*.svg``.

    Raises:
        InputError: If ``out`` has another suffix, or the log has nothing of a pre-training.
    """
    knn = {name: name.removeprefix('probe/knn_') for name in sorted(log) if name.startswith('probe/knn_')}
    return _draw(log, (*REPORT, Panel('kNN recall', knn)), title, out)


def draw_curriculum_curves(log: Log, title: str = '', out: str | Path | None = None) -> Figure:
    """zeta, beta, acceptance and the hardest candidate's similarity over the iterations.

    Args:
        log (dict): From :func:`ccop_mm.visualization.training_log.read_training_log`.
        title (str): Above all.
        out (str | Path, optional): Also write the figure to this ``*.png`` or ``*.svg``.

    Raises:
        InputError: If ``out`` has another suffix, or no curriculum was logged.
    """
    return _draw(log, CURRICULUM, title, out)


def _draw(log: Log, panels: tuple[Panel, ...], title: str, out: str | Path | None) -> Figure:
    if out is not None:
        check_figure_path(out)
    panels = [panel for panel in panels if any(name in log for name in panel.curves)]
    if not panels:
        raise InputError('the log has nothing to draw: it is not of a CCOP pre-training')
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, 1.75 * rows + (0.25 if title else 0)), facecolor='white', layout='constrained')
    if title:
        figure.suptitle(title, fontsize=9)
    cells = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, panel in zip(cells, panels, strict=False):
        _draw_panel(axes, log, panel)
    for axes in cells[len(panels) :]:
        axes.set_axis_off()
    for axes in cells[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel('iteration', fontsize=7)
    if out is not None:
        save_figure(figure, out)
    return figure


def _draw_panel(axes, log: Log, panel: Panel) -> None:
    shown = [(name, label) for name, label in panel.curves.items() if name in log]
    for number, (name, label) in enumerate(shown):
        steps, values = log[name]
        # A single value is a point, which a line would not show.
        marker = 'o' if len(steps) < 8 else None
        axes.plot(
            steps, values, color=COLORS[number % len(COLORS)], linestyle=LINES[number % len(LINES)], linewidth=1.1,
            marker=marker, markersize=2.5, label=label,
        )  # fmt: skip
    axes.set_title(panel.title, fontsize=8, pad=3)
    axes.tick_params(which='both', labelsize=6)
    axes.spines[['top', 'right']].set_visible(False)
    values = np.concatenate([log[name][1] for name, _ in shown])
    if panel.log_scale and (values > 0).all():
        axes.set_yscale('log')
    elif (values >= 0).all():
        axes.set_ylim(0, max(1e-9, 1.08 * values.max()))
    if len(shown) > 1:
        axes.legend(fontsize=6, frameon=False, ncols=2 if len(shown) > 4 else 1, handlelength=2.4, labelspacing=0.2)
