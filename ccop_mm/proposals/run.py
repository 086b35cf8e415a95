"""From photos to a proposals file, in several processes, going on after a kill."""

import functools
import os
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ccop_mm.errors import InputError
from ccop_mm.proposals.journal import Journal
from ccop_mm.proposals.pool import map_unordered
from ccop_mm.proposals.search import propose, require_search
from ccop_mm.proposals.select import filter_boxes, merge_boxes, sample_boxes
from ccop_mm.proposals.sources import BadPhoto, load_photo
from ccop_mm.proposals.store import ProposalStore
from ccop_mm.proposals.summary import Summary
from ccop_mm.version import __version__


@dataclass(frozen=True)
class Rules:
    """How boxes are searched and selected; see :mod:`ccop_mm.proposals.select` for the sources of the numbers."""

    mode: str = 'fast'
    engine: str = 'native'
    min_area: float = 144.0
    max_aspect: float = 3.0
    merge_iou: float = 0.5
    #: The released code keeps 50 a photo and 12 reach a step on average; 100 leave a choice.
    max_boxes: int = 100

    def __post_init__(self):
        for field in fields(self):  # 144 and 144.0 are the same rule and give the same file
            object.__setattr__(self, field.name, field.type(getattr(self, field.name)))
        require_search(self.mode, self.engine)
        for name, fits, needs in (
            ('min_area', self.min_area >= 0, '0 or more'),
            ('max_aspect', self.max_aspect > 1, 'more than 1'),
            ('merge_iou', 0 < self.merge_iou <= 1, 'more than 0 and at most 1'),
            ('max_boxes', self.max_boxes >= 1, '1 or more'),
        ):
            if not fits:
                raise InputError(f'{name} is {getattr(self, name)} and must be {needs}')


@dataclass(frozen=True)
class Record:
    """What became of one photo; fit for JSON but for ``boxes``."""

    image_id: int
    file_name: str
    #: Size of the file, -1 if it cannot be read: tells after a kill whether the photo is still the one searched.
    num_bytes: int
    #: Why the photo cannot be used; the fields below say nothing then.
    reason: str = ''
    size: tuple = (0, 0)
    boxes: np.ndarray | None = None
    #: Boxes searched, left by the size and aspect rules, left by merging.
    counts: tuple = (0, 0, 0)
    #: CPU seconds of the search and of the selection.
    cpu: tuple = (0.0, 0.0)

    def to_json(self):
        boxes = None if self.boxes is None else self.boxes.ravel().tolist()
        return {**asdict(self), 'boxes': boxes}

    @classmethod
    def from_json(cls, values):
        boxes = values['boxes']
        return cls(**{**values, 'boxes': None if boxes is None else np.array(boxes, np.float32).reshape(-1, 4)})


def process(photo, rules):
    """Reads one photo, searches it, and selects its proposals.

    Args:
        photo (Photo): The photo.
        rules (Rules): How.

    Returns:
        Record: With ``reason`` set if the photo cannot be used. No photo raises an exception.
    """
    try:
        image, num_bytes = load_photo(photo.path)
        start = time.thread_time()
        raw = propose(image, rules.mode, rules.engine)
    except BadPhoto as error:
        return Record(photo.image_id, photo.file_name, _num_bytes(photo), reason=str(error))
    except (cv2.error, MemoryError) as error:
        reason = f'search failed: {getattr(error, "err", None) or "out of memory"}'
        return Record(photo.image_id, photo.file_name, _num_bytes(photo), reason=reason)
    searched = time.thread_time()
    ruled = filter_boxes(raw, rules.min_area, rules.max_aspect)
    merged = merge_boxes(ruled, rules.merge_iou)
    boxes = sample_boxes(merged, rules.max_boxes, photo.image_id)
    cpu = (searched - start, time.thread_time() - searched)
    counts = (len(raw), len(ruled), len(merged))
    return Record(photo.image_id, photo.file_name, num_bytes, '', image.shape[:2], boxes, counts, cpu)


def run(photos, out, *, workers=None, progress=True, **rules):
    """Makes the proposals file of a list of photos.

    Finished photos are kept in ``OUT.partial`` until the file is written: the same call, after a kill, goes on from
    there. The file is the same, byte for byte, with any number of kills and workers.

    Args:
        photos (list[Photo]): From :func:`~ccop_mm.proposals.list_photos`.
        out (str | Path): The file to write; an older one is replaced at the end.
        workers (int | None): Processes; 1 searches in this process. By default one for each core.
        progress (bool): Show a bar on stderr.
        **rules: Fields of :class:`Rules`: ``mode``, ``engine``, ``min_area``, ``max_aspect``, ``merge_iou``,
            ``max_boxes``.

    Returns:
        Summary: What was done.

    Raises:
        InputError: If a rule is out of range, ``out`` cannot be written, a worker dies, or ``OUT.partial`` was left by
            other rules or other photos.
    """
    started = time.perf_counter()
    rules, out = Rules(**rules), Path(out)
    if out.is_dir():
        raise InputError(f'{out} is a folder: name the file to write')
    metadata = {'ccop_mm': __version__, 'opencv': cv2.__version__, **asdict(rules)}
    journal = Journal(f'{out}.partial', metadata, Record.from_json)
    try:
        records = _resume(journal, photos)
        resumed = len(records)
        todo = [photo for photo in photos if photo.image_id not in records]
        # The longest searches first, so that no worker begins one when the others have finished.
        todo.sort(key=_num_bytes, reverse=True)
        work = functools.partial(process, rules=rules)
        with _bar(len(photos), resumed, progress) as bar:
            for record in map_unordered(work, todo, _num_cores() if workers is None else workers):
                journal.append(record.to_json())
                records[record.image_id] = record
                bar.update()
        good = [record for record in records.values() if not record.reason]
        skipped = {record.file_name: record.reason for record in records.values() if record.reason}
        entries = [(record.image_id, record.file_name, record.size, record.boxes) for record in good]
        ProposalStore(entries, skipped, metadata).save(out)
        journal.remove()
    finally:
        journal.close()
    return Summary(out, good, skipped, resumed, time.perf_counter() - started)


def _resume(journal, photos):
    """The journal's records by image id, without those of photos that have changed since."""
    listed = {photo.image_id: photo for photo in photos}
    records = {}
    for record in journal.records:
        photo = listed.get(record.image_id)
        if photo is None or photo.file_name != record.file_name:
            raise InputError(
                f'{journal.path} holds {record.file_name}, which is not among these photos: '
                'repeat that command, or delete the file to begin anew'
            )
        if record.num_bytes == _num_bytes(photo):
            records[record.image_id] = record
    return records


def _num_bytes(photo):
    try:
        return os.stat(photo.path).st_size
    except OSError:
        return -1


def _num_cores():
    """Cores that this process may use, which in a container or a job may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def _bar(total, done, progress):
    # A log file gets one line a minute, a terminal ten a second.
    interval = 0.1 if sys.stderr.isatty() else 60
    return tqdm(total=total, initial=done, unit='image', desc='propose', mininterval=interval, disable=not progress)
