"""Helper that replaces an attribute of an upstream object for the duration of a block."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def swap_attribute(owner: object, name: str, value: object) -> Iterator[None]:
    """Sets ``owner.name`` to ``value`` and restores the original value on exit, also after an exception.

    Args:
        owner (object): Module, class or instance that has the attribute.
        name (str): Name of the attribute.
        value (object): Temporary value.
    """
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
