"""Statistics of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccop_mm.proposals.image_record import ImageRecord


@dataclass(frozen=True)
class Summary:
    """Result of a run; ``str()`` formats it for the terminal.

    Args:
        path (Path): Proposals file written.
        records (Sequence[ImageRecord]): Images with proposals, or with zero boxes.
        skipped (dict[str, str]): File name -> reason, of the images that could not be used.
        resumed (int): Number of images that an earlier, interrupted run had finished.
        seconds (float): Wall-clock time of this run.
    """

    path: Path
    records: Sequence[ImageRecord]
    skipped: dict[str, str]
    resumed: int
    seconds: float

    @property
    def empty(self) -> list[str]:
        """list[str]: File names of the images without any box."""
        return sorted(record.file_name for record in self.records if record.boxes is None or not len(record.boxes))

    def __str__(self) -> str:
        lines = [f'images             {len(self.records) + len(self.skipped)}']
        reasons = [f'{name}: {reason}' for name, reason in sorted(self.skipped.items())]
        lines += [f'  skipped          {len(self.skipped)}', *indented_lines(reasons)]
        lines += [f'  without boxes    {len(self.empty)}', *indented_lines(self.empty)]
        if self.records:
            candidates, filtered, merged = np.mean([record.counts for record in self.records], axis=0)
            kept = np.mean([0 if record.boxes is None else len(record.boxes) for record in self.records])
            search, selection = np.mean([record.cpu for record in self.records], axis=0)
            total = search + selection
            lines += [
                f'boxes per image    {kept:.1f} ({candidates:.1f} candidates, {filtered:.1f} after filtering, '
                f'{merged:.1f} after merging)',
                f'CPU s per image    {total:.3f} (selection {selection / total:.1%})',
            ]
        resumed = f' ({self.resumed} images were finished before)' if self.resumed else ''
        return '\n'.join([*lines, f'seconds            {self.seconds:.1f}{resumed}', f'file               {self.path}'])


def indented_lines(items: Sequence[str], limit: int = 10) -> list[str]:
    """Indents the first ``limit`` items and appends a line with the number of the remaining ones."""
    more = [f'... and {len(items) - limit} more'] if len(items) > limit else []
    return [f'    {item}' for item in [*items[:limit], *more]]
