"""Figure of a label-efficiency study: AP against the number of labeled images, one curve per initial weights."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ccop_mm.evaluation.frozen_detector_report import mean_interval
from ccop_mm.utils.errors import InputError
from ccop_mm.visualization.figure_file import check_figure_path, save_figure
from ccop_mm.visualization.palette import COLORS, MARKERS, WIDTH

#: Name of initial weights -> number of images -> metric of each seed in [0, 1].
Curves = Mapping[str, Mapping[int, Sequence[float]]]

#: Height of the figure in inches.
HEIGHT = 2.9
#: Distance of the curves on the x axis, so that their intervals do not overlap, as a factor of the number of images.
SHIFT = 1.03


def plot_label_efficiency(metrics: Mapping[str, Curves], out: str | Path | None = None) -> Figure:
    """Plots one panel per metric: mean over the seeds, and its 95 % interval, against the number of labeled images.

    Args:
        metrics (Mapping): Name of the metric -> curves. Points without values are left out.
        out (str | Path, optional): Also write the figure to this ``*.png`` or ``*.svg`` file.

    Returns:
        Figure: Matplotlib figure.

    Raises:
        InputError: The suffix of ``out`` is not supported, or there is no value.
    """
    if out is not None:
        check_figure_path(out)
    if not any(values for curves in metrics.values() for curve in curves.values() for values in curve.values()):
        raise InputError('there is no value to plot: no run has finished')
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor='white', layout='constrained')
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, (metric, curves) in zip(panels, metrics.items(), strict=True):
        _plot_panel(axes, metric, curves)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc='outside lower center', ncols=min(len(labels), 6), fontsize=8, frameon=False, borderpad=0.2
    )
    if out is not None:
        save_figure(figure, out)
    return figure


def _plot_panel(axes: Axes, metric: str, curves: Curves) -> None:
    counts = sorted({count for curve in curves.values() for count in curve})
    for number, (name, curve) in enumerate(curves.items()):
        shown = sorted(count for count, values in curve.items() if len(values))
        intervals = [mean_interval(curve[count]) for count in shown]
        axes.errorbar(
            np.array(shown, float) * SHIFT ** (number - (len(curves) - 1) / 2),
            [100 * mean for mean, _ in intervals],
            yerr=[math.nan if half_width is None else 100 * half_width for _, half_width in intervals],
            label=name, color=COLORS[number % len(COLORS)], marker=MARKERS[number % len(MARKERS)],
            markersize=4.5, linewidth=1.2, capsize=2.5, elinewidth=0.9,
        )  # fmt: skip
    axes.set_xscale('log')
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    if len(counts) == 1:
        axes.set_xlim(counts[0] / 1.5, counts[0] * 1.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel('labeled images', fontsize=8)
    axes.set_title(f'{metric} in %', fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(axis='y', color='0.9', linewidth=0.6)
    axes.spines[['top', 'right']].set_visible(False)
