import numpy as np
from synthetic_scenes.objects import KINDS


def test_outlines_differ_and_fit_into_the_unit_square():
    y, x = np.mgrid[-1.3:1.3:131j, -1.3:1.3:131j]
    outlines = {name: kind(x, y, np.random.default_rng(0))[0] > 0 for name, kind in KINDS.items()}
    for name, outline in outlines.items():
        assert not outline[np.maximum(abs(x), abs(y)) > 1.01].any(), name
        assert not outline[0].any(), name
        for other_name, other in outlines.items():
            iou = (outline & other).sum() / (outline | other).sum()
            assert iou < 0.9 or other_name == name, (name, other_name)


def test_patterns_cover_a_part_of_each_category():
    y, x = np.mgrid[-1.3:1.3:131j, -1.3:1.3:131j]
    for name, kind in KINDS.items():
        depth, pattern = kind(x, y, np.random.default_rng(0))
        assert 0.05 < pattern[depth > 0].mean() < 0.6, name
