"""Whether a proposals file belongs to a set of photos."""

import functools
from dataclasses import dataclass, field

import cv2
import numpy as np

from ccop_mm.errors import InputError
from ccop_mm.proposals.pool import map_unordered
from ccop_mm.proposals.rules import Rules
from ccop_mm.proposals.sources import BadPhoto, Photo, decode_photo, digest_of, read_photo
from ccop_mm.proposals.work import process


@dataclass
class Report:
    """What :func:`verify` found; ``str()`` of it is what a user reads."""

    metadata: dict
    num_photos: int
    num_skipped: int
    num_empty: int
    num_boxes: int
    num_same_bytes: int = 0
    num_searched_again: int = 0
    #: list[str]: One line for each fault.
    faults: list = field(default_factory=list)

    def __str__(self):
        made = ', '.join(f'{key} {value}' for key, value in sorted(self.metadata.items()) if 'format' not in key)
        lines = [
            'checksum           right',
            f'made with          {made or "not told"}',
            f'photos             {self.num_photos}',
            f'  lack boxes       {self.num_empty + self.num_skipped}'
            f' ({self.num_empty} without any, {self.num_skipped} skipped)',
            f'  bytes unchanged  {self.num_same_bytes}',
        ]
        if self.num_searched_again:
            lines.append(f'  searched again   {self.num_searched_again}')
        lines += [f'boxes              {self.num_boxes}', f'faults             {len(self.faults)}']
        more = [f'... and {len(self.faults) - 20} more'] if len(self.faults) > 20 else []
        return '\n'.join([*lines, *(f'    {line}' for line in [*self.faults[:20], *more])])


def verify(store, photos, *, again=0, workers=1):
    """Compares a store with the photos that it should be of.

    Every photo must be in the store under its id and name, its file must have the bytes it had (or, where those are not
    known, give an image of the size it had), and its boxes must lie inside and obey the rules that the metadata name.

    Args:
        store (ProposalStore): The store; its checksum was verified when it was loaded.
        photos (list[Photo]): From :func:`~ccop_mm.proposals.list_photos`.
        again (int): Also find the boxes of so many photos anew, chosen at random, and compare.
        workers (int): Processes.

    Returns:
        Report: With one line for each fault.

    Raises:
        InputError: If a worker dies, or boxes that no search made are to be searched again.
    """
    skipped = store.skipped
    ids = store.image_ids.tolist()
    report = Report(
        store.metadata, len(photos), len(skipped), int((store.num_boxes == 0).sum()), int(store.num_boxes.sum())
    )
    listed = {photo.image_id: photo.file_name for photo in photos}
    present = [photo for photo in photos if photo.image_id in store]
    for photo in photos:
        if photo.image_id not in store and photo.file_name not in skipped:
            report.faults.append(f'{photo.file_name} (id {photo.image_id}) is not in the file')
    names = set(listed.values())
    for image_id in ids:
        if listed.get(image_id, store.file_name(image_id)) != store.file_name(image_id):
            report.faults.append(
                f'id {image_id} is {store.file_name(image_id)} in the file and {listed[image_id]} in the source'
            )
        elif image_id not in listed:
            report.faults.append(f'{store.file_name(image_id)} (id {image_id}) is in the file alone')
    report.faults += [f'{name} (skipped) is in the file alone' for name in sorted(skipped) if name not in names]
    rules = _rules(store)
    for image_id in ids:
        report.faults += _box_faults(store, image_id, rules)
    checks = [_Check(photo, store.digest(photo.image_id), store.size(photo.image_id)) for photo in present]
    results = list(map_unordered(_check_file, checks, workers))
    report.num_same_bytes = sum(same for _, same in results)
    report.faults += sorted(fault for fault, _ in results if fault)
    if again:
        if rules is None or rules.method == 'ground-truth':
            raise InputError('only boxes that this tool searched, or drew at random, can be found again')
        rules.require()
        chosen = np.random.default_rng(0).permutation(len(present))[:again].tolist()
        for record in map_unordered(functools.partial(process, rules=rules), [present[i] for i in chosen], workers):
            report.num_searched_again += 1
            if record.reason or not np.array_equal(record.boxes, store.boxes(record.image_id)):
                what = record.reason or f'other boxes are found now, with OpenCV {cv2.__version__}'
                report.faults.append(f'{record.file_name}: {what}')
    return report


def _rules(store):
    try:
        return Rules.from_json(store.metadata)
    except KeyError:
        return None


def _box_faults(store, image_id, rules):
    """One line for each kind of fault that a photo's boxes have."""
    boxes, (height, width) = store.boxes(image_id).astype(np.float64), store.size(image_id)
    sides = boxes[:, 2:] - boxes[:, :2]
    outside = ~((boxes >= 0).all(axis=1) & (boxes[:, 2:] <= (width, height)).all(axis=1))
    checks = [('outside the photo', outside), ('without area', ~(sides > 0).all(axis=1))]
    if rules is not None:
        shorter, longer = sides.min(axis=1, initial=np.inf), sides.max(axis=1, initial=0)
        # Averages of boxes that obey the size and aspect rules need not obey them.
        if rules.merge != 'average':
            checks.append((f'smaller than {rules.min_area:g} pixels', shorter * longer < rules.min_area))
            checks.append((f'longer than 1 to {rules.max_aspect:g}', longer >= rules.max_aspect * shorter))
        checks.append((f'more than {rules.max_boxes}', np.arange(len(boxes)) >= rules.max_boxes))
    name = store.file_name(image_id)
    return [f'{name}: {bad.sum()} of {len(boxes)} boxes are {what}' for what, bad in checks if bad.any()]


@dataclass(frozen=True)
class _Check:
    """A photo, and the digest and size of its file when its boxes were made."""

    photo: Photo
    digest: int
    size: tuple

    def __str__(self):
        return str(self.photo)


def _check_file(check):
    """What is wrong with a photo's file, '' if nothing; and whether its bytes are known to be the same."""
    name, (height, width) = check.photo.file_name, check.size
    try:
        content = read_photo(check.photo.path)
        if check.digest and check.digest == digest_of(content):
            return '', True
        found = decode_photo(content).shape[:2]
    except BadPhoto as error:
        return f'{name}: {error}', False
    if found != (height, width):
        return f'{name}: {found[1]}x{found[0]} pixels, its boxes are of {width}x{height}', False
    return (f'{name}: the file has changed since its boxes were made' if check.digest else ''), False
