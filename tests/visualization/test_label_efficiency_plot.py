import numpy as np
import pytest
from scipy import stats

from ccop_mm.utils.errors import InputError
from ccop_mm.visualization.label_efficiency_plot import plot_label_efficiency

CURVES = {
    'random': {10: [0.1, 0.2, 0.12], 100: [0.3, 0.32, 0.31]},
    'ccop': {10: [0.2, 0.24, 0.25], 100: [0.35]},
    'moco': {10: [], 100: [0.33, 0.31]},
}


def test_means_and_intervals(tmp_path):
    figure = plot_label_efficiency({'AP50': CURVES, 'AP': CURVES}, tmp_path / 'a.png')
    assert (tmp_path / 'a.png').stat().st_size > 10_000
    panels = figure.axes
    assert [axes.get_title() for axes in panels] == ['AP50 in %', 'AP in %']
    axes = panels[0]
    assert axes.get_xscale() == 'log' and axes.get_ylim()[0] == 0
    assert [label.get_text() for label in axes.get_xticklabels()] == ['10', '100']
    containers = {container.get_label(): container for container in axes.containers}
    for name, curve in CURVES.items():
        line, _, (bars,) = containers[name]
        counts = [count for count in curve if curve[count]]
        shifts = np.array(line.get_xdata(), float) / counts
        np.testing.assert_allclose(shifts, shifts[0])
        assert 0.9 < shifts[0] < 1.1
        np.testing.assert_allclose(np.array(line.get_ydata(), float), [100 * np.mean(curve[count]) for count in counts])
        for count, segment in zip(counts, bars.get_segments(), strict=True):
            values = curve[count]
            if len(values) == 1:
                assert not len(segment)
                continue
            half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
            np.testing.assert_allclose(segment[:, 1], 100 * (np.mean(values) + np.array([-half, half])))
    lines = [containers[name][0] for name in CURVES]
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 3
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(CURVES)


def test_single_share():
    figure = plot_label_efficiency({'AP': {'random': {64: [0.1]}}})
    low, high = figure.axes[0].get_xlim()
    assert low < 64 < high


def test_nothing_to_plot(tmp_path):
    with pytest.raises(InputError, match='no value'):
        plot_label_efficiency({'AP': {'random': {64: []}}})
    with pytest.raises(InputError, match='a.pdf'):
        plot_label_efficiency({'AP': CURVES}, tmp_path / 'a.pdf')
