"""Consistency check of a proposals file and the images it was generated from."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from ccop_mm.proposals.candidates import require_engine
from ccop_mm.proposals.image_record import propose_image
from ccop_mm.proposals.runner.local import map_unordered
from ccop_mm.proposals.runner.summary import indented_lines
from ccop_mm.proposals.settings import ProposalSettings
from ccop_mm.proposals.store import ProposalStore
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import ImageFile, UnreadableImageError, content_digest, decode_image, read_image_bytes


@dataclass
class Report:
    """Result of :func:`verify`; ``str()`` formats it for the terminal."""

    metadata: dict[str, Any]
    num_images: int
    num_skipped: int
    num_empty: int
    num_boxes: int
    num_same_bytes: int = 0
    num_regenerated: int = 0
    #: One line for each problem.
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        settings = ', '.join(f'{key} {value}' for key, value in sorted(self.metadata.items()) if 'format' not in key)
        lines = [
            'checksum           correct',
            f'generated with     {settings or "unknown settings"}',
            f'images             {self.num_images}',
            f'  without boxes    {self.num_empty + self.num_skipped}'
            f' ({self.num_empty} without proposals, {self.num_skipped} skipped)',
            f'  unchanged bytes  {self.num_same_bytes}',
        ]
        if self.num_regenerated:
            lines.append(f'  regenerated      {self.num_regenerated}')
        lines += [f'boxes              {self.num_boxes}', f'problems           {len(self.problems)}']
        return '\n'.join([*lines, *indented_lines(self.problems, limit=20)])


def verify(store: ProposalStore, images: Sequence[ImageFile], *, again: int = 0, workers: int = 1) -> Report:
    """Compares a store with the images it should belong to.

    Every image must be in the store under its id and file name. Its file must have the same digest as when the boxes
    were generated or, if the digest is not known, the same image size. Its boxes must be inside the image and within
    the limits that the metadata state.

    Args:
        store (ProposalStore): Proposals; loading them has verified the checksum.
        images (Sequence[ImageFile]): Result of :func:`~ccop_mm.proposals.list_images`.
        again (int): Number of randomly chosen images whose boxes are generated again and compared.
        workers (int): Number of processes.

    Returns:
        Report: Statistics, and one line for each problem.

    Raises:
        InputError: If a worker process dies, or if boxes are to be generated again that this package did not generate.
    """
    report = Report(
        metadata=store.metadata,
        num_images=len(images),
        num_skipped=len(store.skipped),
        num_empty=int((store.num_boxes == 0).sum()),
        num_boxes=int(store.num_boxes.sum()),
    )
    present = [image for image in images if image.image_id in store]
    settings = _settings(store)
    report.problems += _name_problems(store, images)
    for image_id in store.image_ids.tolist():
        report.problems += _box_problems(store, image_id, settings)
    checks = [_FileCheck(image, store.digest(image.image_id), store.size(image.image_id)) for image in present]
    results = list(map_unordered(_check_file, checks, workers))
    report.num_same_bytes = sum(same_bytes for _, same_bytes in results)
    report.problems += sorted(problem for problem, _ in results if problem)
    if again:
        if settings is None or settings.method == 'ground-truth':
            raise InputError(
                '--again requires boxes from selective search or random sampling, but the file has the method '
                f'{store.metadata.get("method")!r}: omit --again'
            )
        if settings.method == 'selective-search':
            require_engine(settings.mode, settings.engine)
        chosen = [present[i] for i in np.random.default_rng(0).permutation(len(present))[:again].tolist()]
        for record in map_unordered(functools.partial(propose_image, settings=settings), chosen, workers):
            report.num_regenerated += 1
            if record.boxes is None or not np.array_equal(record.boxes, store.boxes(record.image_id)):
                problem = record.reason or f'the regenerated boxes differ (OpenCV {cv2.__version__})'
                report.problems.append(f'{record.file_name}: {problem}')
    return report


def _settings(store: ProposalStore) -> ProposalSettings | None:
    """Returns the settings of the boxes, or None if this package did not generate them."""
    try:
        return ProposalSettings.from_json(store.metadata)
    except KeyError:
        return None


def _name_problems(store: ProposalStore, images: Sequence[ImageFile]) -> list[str]:
    """Compares the ids and file names of a store with those of the images."""
    skipped, name_by_id = store.skipped, {image.image_id: image.file_name for image in images}
    problems = [
        f'{image.file_name} (id {image.image_id}) is not in the proposals file'
        for image in images
        if image.image_id not in store and image.file_name not in skipped
    ]
    for image_id in store.image_ids.tolist():
        stored, listed = store.file_name(image_id), name_by_id.get(image_id)
        if listed is None:
            problems.append(f'{stored} (id {image_id}) is in the proposals file only')
        elif listed != stored:
            problems.append(f'id {image_id} is {stored} in the proposals file and {listed} in the source')
    names = set(name_by_id.values())
    return problems + [
        f'{name} (skipped) is in the proposals file only' for name in sorted(skipped) if name not in names
    ]


def _box_problems(store: ProposalStore, image_id: int, settings: ProposalSettings | None) -> list[str]:
    """Returns one line for each kind of invalid box of an image."""
    boxes, (height, width) = store.boxes(image_id).astype(np.float64), store.size(image_id)
    sides = boxes[:, 2:] - boxes[:, :2]
    outside = ~((boxes >= 0).all(axis=1) & (boxes[:, 2:] <= (width, height)).all(axis=1))
    checks = [('are outside the image', outside), ('have no area', ~(sides > 0).all(axis=1))]
    if settings is not None:
        shorter, longer = sides.min(axis=1, initial=np.inf), sides.max(axis=1, initial=0)
        # Averages of boxes within the limits of area and aspect ratio may exceed them.
        if settings.merge != 'average':
            min_area, max_aspect = settings.min_area, settings.max_aspect
            checks.append((f'have an area below {min_area:g} square pixels', shorter * longer < min_area))
            checks.append((f'have an aspect ratio of {max_aspect:g} or more', longer >= max_aspect * shorter))
        checks.append((f'exceed the maximum of {settings.max_boxes}', np.arange(len(boxes)) >= settings.max_boxes))
    name = store.file_name(image_id)
    return [f'{name}: {invalid.sum()} of {len(boxes)} boxes {what}' for what, invalid in checks if invalid.any()]


@dataclass(frozen=True)
class _FileCheck:
    """An image, and the digest and size of its file when its boxes were generated."""

    image_file: ImageFile
    digest: int
    size: tuple[int, int]

    def __str__(self) -> str:
        return str(self.image_file)


def _check_file(check: _FileCheck) -> tuple[str, bool]:
    """Returns the problem of an image file, '' if there is none, and whether its bytes are known to be the same."""
    name, (height, width) = check.image_file.file_name, check.size
    try:
        content = read_image_bytes(check.image_file.path)
        if check.digest and check.digest == content_digest(content):
            return '', True
        found_height, found_width = decode_image(content).shape[:2]
    except UnreadableImageError as error:
        return f'{name}: {error}', False
    if (found_height, found_width) != (height, width):
        return f'{name}: {found_width}x{found_height} pixels, but its boxes belong to {width}x{height}', False
    return (f'{name}: the file has changed since its boxes were generated' if check.digest else ''), False
