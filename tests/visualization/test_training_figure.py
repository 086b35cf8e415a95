import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ccop_mm.errors import InputError
from ccop_mm.visualization import draw_curriculum_curves, draw_training_report

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


def test_report_draws_what_was_logged(log, tmp_path):
    figure = draw_training_report(log, 'a run', tmp_path / 'a.png')
    panels = by_title(figure)
    np.testing.assert_array_equal(curves(panels['losses'])['object'], np.stack(log['loss_obj'], axis=1))
    np.testing.assert_array_equal(
        curves(panels['effective rank of the newest keys'])['image'][:, 1], log['rank_image'][1]
    )
    assert set(curves(panels['pointing accuracy'])) == {'C4', 'chance'}
    assert len(curves(panels['kNN recall'])) == 1
    assert 'spread of the newest keys' not in panels  # was not logged
    assert figure.get_suptitle() == 'a run'
    draw_training_report(log, out=tmp_path / 'a.svg')
    assert b'<svg' in (tmp_path / 'a.svg').read_bytes()


def test_curriculum_curves(log):
    panels = by_title(draw_curriculum_curves(log))
    assert list(panels) == [
        'noise range and IoU floor', 'share of plain draws accepted', 'similarity of the hardest candidate'
    ]  # fmt: skip
    np.testing.assert_array_equal(curves(panels['noise range and IoU floor'])[r'$\zeta$'][:, 1], log['zeta'][1])
    assert panels['share of plain draws accepted'].get_yscale() == 'log'
    log['acceptance'][1][0] = 0
    assert by_title(draw_curriculum_curves(log))['share of plain draws accepted'].get_yscale() == 'linear'


def test_texts_stay_on_the_page_and_apart(log):
    figure = draw_training_report(log, 'a run')
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    titles = [axes.title.get_window_extent(renderer) for axes in figure.axes if axes.get_title()]
    for index, box in enumerate(titles):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert box.count_overlaps(titles[:index]) == 0


def test_lines_of_a_panel_differ_in_color_and_dash(log):
    lines = by_title(draw_training_report(log))['losses'].lines
    assert len({line.get_color() for line in lines}) == len({line.get_linestyle() for line in lines}) == 4


def test_bad_input(log, tmp_path):
    with pytest.raises(InputError, match='not of a CCOP pre-training'):
        draw_curriculum_curves({'loss_rpn': series(1, 0)})
    with pytest.raises(InputError, match='a.gif'):
        draw_training_report(log, out=tmp_path / 'a.gif')
