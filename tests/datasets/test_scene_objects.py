import numpy as np

from ccop_mm.datasets.scene_objects import KINDS


def test_kinds_have_distinct_outlines_inside_the_unit_square():
    y, x = np.mgrid[-1.3:1.3:131j, -1.3:1.3:131j]
    outlines = {name: kind(x, y, np.random.default_rng(0))[0] > 0 for name, kind in KINDS.items()}
    for name, outline in outlines.items():
        assert not outline[np.maximum(abs(x), abs(y)) > 1.01].any(), name
        assert not outline[0].any()
        for other, its in outlines.items():
            overlap = (outline & its).sum() / (outline | its).sum()
            assert overlap < 0.9 or other == name, (name, other)


def test_patterns_cover_a_part_of_each_kind():
    y, x = np.mgrid[-1.3:1.3:131j, -1.3:1.3:131j]
    for name, kind in KINDS.items():
        depth, pattern = kind(x, y, np.random.default_rng(0))
        assert 0.05 < pattern[depth > 0].mean() < 0.6, name
