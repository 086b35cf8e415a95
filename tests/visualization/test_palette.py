from ccop_mm.visualization.palette import class_styles


def test_classes_differ_and_neighbors_differ_in_color():
    styles = class_styles(56)
    assert len(set(styles)) == 56
    assert all(one[0] != other[0] for one, other in zip(styles, styles[1:], strict=False))
