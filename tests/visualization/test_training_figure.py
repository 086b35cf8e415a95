import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ccop_mm.utils.errors import InputError
from ccop_mm.visualization import plot_curriculum_curves, plot_training_report

STEPS = np.arange(10, 410, 10)


def series(start, end, steps=STEPS):
    return steps, np.linspace(start, end, len(steps))


@pytest.fixture
def log():
    return {
        'loss': series(11, 8), 'loss_img': series(4, 3), 'loss_obj': series(6, 5), 'loss_intra': series(0.2, 0.05),
        'zeta': series(0.3, 1), 'beta': series(0.8, 0.3), 'acceptance': series(0.014, 0.11),
        'hardest_similarity': series(0.5, 0.4), 'objects_per_image': series(9, 11), 'lr': series(0.1, 0),
        'time': series(0.5, 0.6), 'rank_image': series(20, 60), 'rank_object': series(30, 70),
        'probe/C4': series(0.3, 0.5, np.array([0, 400])), 'probe/chance': series(0.17, 0.17, np.array([0, 400])),
        'probe/knn_C5@10': series(0.2, 0.3, np.array([0, 400])),
    }  # fmt: skip


def curves(axes):
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def by_title(figure):
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def test_report_shows_what_was_logged(log, tmp_path):
    figure = plot_training_report(log, 'a run', tmp_path / 'a.png')
    panels = by_title(figure)
    np.testing.assert_array_equal(curves(panels['losses'])['object'], np.stack(log['loss_obj'], axis=1))
    np.testing.assert_array_equal(
        curves(panels['effective rank of the newest keys'])['image'][:, 1], log['rank_image'][1]
    )
    assert set(curves(panels['pointing game accuracy'])) == {'C4', 'chance'}
    assert len(curves(panels['kNN recall'])) == 1
    assert 'embedding std of the newest keys' not in panels  # not logged
    assert figure.get_suptitle() == 'a run'
    plot_training_report(log, out=tmp_path / 'a.svg')
    assert b'<svg' in (tmp_path / 'a.svg').read_bytes()


def test_curriculum_curves(log):
    panels = by_title(plot_curriculum_curves(log))
    assert list(panels) == [
        'noise range and minimum IoU', 'acceptance rate of uniform noise', 'similarity of the hardest candidate'
    ]  # fmt: skip
    np.testing.assert_array_equal(curves(panels['noise range and minimum IoU'])[r'$\zeta$'][:, 1], log['zeta'][1])
    assert panels['acceptance rate of uniform noise'].get_yscale() == 'log'
    log['acceptance'][1][0] = 0
    assert by_title(plot_curriculum_curves(log))['acceptance rate of uniform noise'].get_yscale() == 'linear'


@pytest.mark.parametrize('plot', [plot_training_report, plot_curriculum_curves])
def test_titles_and_legends_overlap_neither_each_other_nor_the_axes(log, plot):
    probes = {f'probe/{level}': log['probe/C4'] for level in ('C3', 'P2', 'P3', 'P4', 'P5')}
    knn = {f'probe/knn_{name}': log['probe/C4'] for name in ('C4@10', 'chance', 'embedding@10')}
    figure = plot({**log, **probes, **knn}, 'a run')
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    panels = [axes for axes in figure.axes if axes.get_title()]
    legends = [axes.get_legend() for axes in panels if axes.get_legend()]
    assert legends
    titles = [axes.title for axes in panels]
    boxes = [artist.get_window_extent(renderer) for artist in (*panels, *titles, *legends)]
    for index, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert box.count_overlaps(boxes[:index]) == 0


def test_logs_of_earlier_versions(log):
    log['spread_image'] = series(0.1, 0.2, np.array([10, 20]))
    log['embedding_std_image'] = series(0.3, 0.4, np.array([30, 40]))
    log['spread_object'] = series(0.5, 0.6, np.array([10, 20]))
    panel = curves(by_title(plot_training_report(log))['embedding std of the newest keys'])
    assert panel['image'].tolist() == [[10, 0.1], [20, 0.2], [30, 0.3], [40, 0.4]]
    assert panel['object'].tolist() == [[10, 0.5], [20, 0.6]]


def test_curves_of_a_panel_differ_in_color_and_line_style(log):
    lines = by_title(plot_training_report(log))['losses'].lines
    assert len({line.get_color() for line in lines}) == len({line.get_linestyle() for line in lines}) == 4


def test_bad_input(log, tmp_path):
    with pytest.raises(InputError, match='CCOP'):
        plot_curriculum_curves({'loss_rpn': series(1, 0)})
    with pytest.raises(InputError, match='a.gif'):
        plot_training_report(log, out=tmp_path / 'a.gif')
