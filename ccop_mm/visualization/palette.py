"""Colors that are distinguishable with color vision deficiency, markers for further classes, and the figure width."""

#: Palette of Okabe and Ito without yellow, which has too little contrast on white.
COLORS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#000000')
#: Colors of the full palette that are visible on images.
IMAGE_COLORS = ('#E69F00', '#56B4E9', '#F0E442', '#CC79A7', '#009E73', '#D55E00')
MARKERS = ('o', '^', 's', 'x', 'D', 'v', '+', 'P')

#: Width of a figure in inches: the text width of a two-column page.
WIDTH = 7.16


def bgr(color: str) -> tuple[int, int, int]:
    """Converts ``'#RRGGBB'`` to the (B, G, R) tuple that OpenCV expects."""
    return int(color[5:7], 16), int(color[3:5], 16), int(color[1:3], 16)


def class_styles(count: int) -> list[tuple[str, str]]:
    """Returns a (color, marker) pair for each class; pairs are unique up to 56 classes, neighbors differ in color."""
    return [(COLORS[n % len(COLORS)], MARKERS[n // len(COLORS) % len(MARKERS)]) for n in range(count)]
