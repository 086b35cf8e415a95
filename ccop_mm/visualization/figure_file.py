"""Figures to files."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from ccop_mm.errors import InputError
from ccop_mm.fileio import atomic_write

#: The formats offered, by suffix.
SUFFIXES = ('.png', '.svg')


def check_figure_path(path: str | Path) -> Path:
    """The path, if its suffix is one of :data:`SUFFIXES`; to be called before a figure's work is begun.

    Raises:
        InputError: If it is another.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f'{path}: a figure is written as {" or ".join(SUFFIXES)}')
    return path


def save_figure(figure: Figure, path: str | Path, dpi: int = 200) -> None:
    """Writes a figure as PNG or SVG, whole or not at all; the same figure gives the same bytes.

    Args:
        figure (Figure): Made without pyplot, so that nothing global is touched and no display is needed.
        path (str | Path): ``*.png`` or ``*.svg``; missing parent folders are made.
        dpi (int): Pixels per inch of a PNG, and of the photos inside an SVG.

    Raises:
        InputError: If the suffix is another.
    """
    path = check_figure_path(path)
    suffix = path.suffix.lower()[1:]
    # SVG alone holds a date and random ids, unless told otherwise.
    options = {'metadata': {'Date': None}} if suffix == 'svg' else {}
    with matplotlib.rc_context({'svg.hashsalt': 'ccop_mm'}), atomic_write(path) as file:
        figure.savefig(file, format=suffix, dpi=dpi, **options)
