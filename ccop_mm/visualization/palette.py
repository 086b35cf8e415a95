"""Colors that color-blind readers tell apart, and marks that tell more classes apart than there are colors."""

#: Okabe and Ito's palette without yellow, which does not show on white.
COLORS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#000000')
#: Those of the whole palette that show on photos.
PHOTO_COLORS = ('#E69F00', '#56B4E9', '#F0E442', '#CC79A7', '#009E73', '#D55E00')
MARKERS = ('o', '^', 's', 'x', 'D', 'v', '+', 'P')

#: Width of a figure in inches: two columns of the usual two-column page.
WIDTH = 7.16


def bgr(color: str) -> tuple[int, int, int]:
    """``'#RRGGBB'`` as OpenCV takes it."""
    return tuple(int(color[start : start + 2], 16) for start in (5, 3, 1))


def class_styles(count: int) -> list[tuple[str, str]]:
    """A color and a marker for each class; no pair twice up to 56, neighbors differ in color."""
    return [(COLORS[n % len(COLORS)], MARKERS[n // len(COLORS) % len(MARKERS)]) for n in range(count)]
