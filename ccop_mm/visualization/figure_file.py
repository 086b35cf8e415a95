"""Writes figures to files."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write

#: Suffixes of the supported formats.
SUFFIXES = ('.png', '.svg')


def check_figure_path(path: str | Path) -> Path:
    """Checks that a figure can be written to a path; call it before any expensive work.

    Raises:
        InputError: The suffix is not in :data:`SUFFIXES`.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f'{path}: unsupported figure format; use {" or ".join(SUFFIXES)}')
    return path


def save_figure(figure: Figure, path: str | Path, dpi: int = 200) -> None:
    """Writes a figure atomically as PNG or SVG; equal figures give identical files.

    A PNG has full color. Reducing it to an indexed palette makes it smaller but posterizes images.

    Args:
        figure (Figure): Figure created without pyplot, so that no display and no global state is involved.
        path (str | Path): ``*.png`` or ``*.svg``; missing parent directories are created.
        dpi (int): Resolution of a PNG, and of images embedded in an SVG, in pixels per inch.

    Raises:
        InputError: The suffix is not supported.
    """
    path = check_figure_path(path)
    if path.suffix.lower() == '.svg':
        # Without these settings an SVG contains the date and random ids.
        format_options = dict(format='svg', metadata={'Date': None})
    else:
        format_options = dict(format='png')
    with matplotlib.rc_context({'svg.hashsalt': 'ccop_mm'}), atomic_write(path) as file:
        figure.savefig(file, dpi=dpi, **format_options)
