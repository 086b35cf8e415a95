"""What a run did, as a user reads it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Summary:
    """What a run did; ``str()`` of it is the table a user reads.

    Args:
        path (Path): The file written.
        records (list[Record]): The photos searched.
        skipped (dict[str, str]): File name -> reason, of the others.
        resumed (int): How many photos an earlier, killed run had finished.
        seconds (float): Wall time of this run.
    """

    path: Path
    records: list
    skipped: dict
    resumed: int
    seconds: float

    @property
    def empty(self):
        """list[str]: Names of the photos searched that have no proposal."""
        return sorted(record.file_name for record in self.records if not len(record.boxes))

    def __str__(self):
        lines = [f'photos             {len(self.records) + len(self.skipped)}']
        reasons = [f'{name}: {reason}' for name, reason in sorted(self.skipped.items())]
        lines += [f'  skipped          {len(self.skipped)}', *_some(reasons)]
        lines += [f'  without any box  {len(self.empty)}', *_some(self.empty)]
        if self.records:
            raw, ruled, merged = np.mean([record.counts for record in self.records], axis=0)
            kept = np.mean([len(record.boxes) for record in self.records])
            search, selection = np.mean([record.cpu for record in self.records], axis=0)
            lines += [
                f'boxes a photo      {kept:.1f} (searched {raw:.1f}, size and aspect {ruled:.1f}, merged {merged:.1f})',
                f'CPU s a photo      {search + selection:.3f} (selection {selection / (search + selection):.1%})',
            ]
        resumed = f' ({self.resumed} photos were finished before)' if self.resumed else ''
        return '\n'.join([*lines, f'seconds            {self.seconds:.1f}{resumed}', f'file               {self.path}'])


def _some(lines, most=10):
    """The first lines, indented, and how many more there are."""
    more = [f'... and {len(lines) - most} more'] if len(lines) > most else []
    return [f'    {line}' for line in [*lines[:most], *more]]
