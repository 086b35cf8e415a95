"""Adds boxes to Matplotlib axes."""

from collections.abc import Iterable
from itertools import repeat
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor


def add_boxes(axes: Axes, boxes: Tensor, label: str, colors: str | Iterable[Any], **style: float) -> None:
    """Adds the outlines of boxes to axes.

    Args:
        axes (Axes): Axes in pixels of the image.
        boxes (Tensor): ``(N, 4)`` xyxy in pixels.
        label (str): Label of the patches, by which tests and callers find them.
        colors (str | Iterable): Color of all outlines, or one color per box.
        **style: Further properties of the patches, such as ``linewidth``.
    """
    box_colors = repeat(colors, len(boxes)) if isinstance(colors, str) else colors
    for (x1, y1, x2, y2), color in zip(boxes.tolist(), box_colors, strict=True):
        patch = Rectangle(
            (x1, y1), x2 - x1, y2 - y1, fill=False, label=label, edgecolor=color, joinstyle='miter', **style
        )
        axes.add_patch(patch)
