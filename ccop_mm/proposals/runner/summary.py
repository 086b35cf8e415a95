"""Statistics of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ccop_mm.proposals.image_record import ImageRecord
from ccop_mm.utils.images import format_passed_over


@dataclass(frozen=True)
class Summary:
    """Result of a run; ``str()`` formats it for the terminal.

    Args:
        path (Path): Proposals file written.
        records (Sequence[ImageRecord]): Images with proposals, or with zero boxes.
        skipped (dict[str, str]): File name -> reason, of the images that could not be used.
        resumed (int): Number of images that an earlier, interrupted run had finished.
        seconds (float): Wall-clock time of this run.
        low_depth (Mapping[str, int]): File name -> number of bits, of the 16-bit images that are read as nearly black
            because their values need fewer bits.
        passed_over (Mapping[str, int]): Number of files of the folder by kind that look like images but were not read.
    """

    path: Path
    records: Sequence[ImageRecord]
    skipped: dict[str, str]
    resumed: int
    seconds: float
    low_depth: Mapping[str, int] = field(default_factory=dict)
    passed_over: Mapping[str, int] = field(default_factory=dict)

    @property
    def empty(self) -> list[str]:
        """list[str]: File names of the images without any box."""
        return sorted(record.file_name for record in self.records if record.boxes is None or not len(record.boxes))

    def __str__(self) -> str:
        lines = [f'images             {len(self.records) + len(self.skipped)}']
        reasons = [f'{name}: {reason}' for name, reason in sorted(self.skipped.items())]
        lines += [f'  skipped          {len(self.skipped)}', *indented_lines(reasons)]
        lines += [f'  without boxes    {len(self.empty)}', *indented_lines(self.empty)]
        if self.low_depth:
            names = [f'{name}: {bits} bits' for name, bits in sorted(self.low_depth.items())]
            lines += [
                f'  WARNING          {len(self.low_depth)} 16-bit images contain at most 14 bits and are read as '
                'nearly black: convert them to 8 bits',
                *indented_lines(names),
            ]
        if self.passed_over:
            number = sum(self.passed_over.values())
            lines.append(f'files passed over  {number}: {format_passed_over(self.passed_over)}')
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
