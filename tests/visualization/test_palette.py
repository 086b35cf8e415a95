from ccop_mm.visualization.palette import bgr, class_styles


def test_classes_have_unique_styles_and_neighbors_differ_in_color():
    styles = class_styles(56)
    assert len(set(styles)) == 56
    assert all(one[0] != other[0] for one, other in zip(styles, styles[1:], strict=False))


def test_bgr_order():
    assert bgr('#E69F00') == (0x00, 0x9F, 0xE6)
