"""Objects that execute code when they are unpickled."""

import os
from pathlib import Path

from mmengine.logging import HistoryBuffer


class Planted:
    """Creates a folder when it is unpickled.

    Args:
        marker (Path): Folder to create; its existence proves that the code was executed.
    """

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


class PlantedGetattr:
    """Accesses the globals of a function through ``getattr`` when it is unpickled."""

    def __reduce__(self):
        return getattr, (HistoryBuffer.__init__, '__globals__')
