"""Formatting for messages."""

from collections.abc import Sequence


def format_truncated(items: Sequence[object], limit: int = 4, separator: str = ', ') -> str:
    """Joins the first ``limit`` items and appends the number of the remaining ones.

    Args:
        items (Sequence): Items to list, formatted by ``str``.
        limit (int): Maximum number of items to list.
        separator (str): Text between two items.

    Returns:
        str: For example ``'a, b and 3 more'``.
    """
    shown = separator.join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f'{shown} and {len(items) - limit} more'


def single_line(error: BaseException) -> str:
    """Returns the first non-empty line of an exception's message, or its class name if the message is empty."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def format_duration(seconds: float) -> str:
    """Formats a duration with its two largest units, rounded to the smaller one.

    Returns:
        str: For example ``'2 d 7 h'``, ``'3 h 5 min'``, ``'40 min'`` or ``'12 s'``.
    """
    if seconds < 59.5:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        hours, minutes = divmod(minutes, 60)
        return f'{hours} h {minutes} min' if hours else f'{minutes} min'
    days, hours = divmod(round(seconds / 3600), 24)
    return f'{days} d {hours} h'
