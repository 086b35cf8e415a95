"""What is done with one photo, in whatever process."""

import os
import time
from dataclasses import asdict, dataclass

import cv2
import numpy as np

from ccop_mm.proposals.methods import find_boxes
from ccop_mm.proposals.select import filter_boxes, merge_boxes, sample_boxes
from ccop_mm.proposals.sources import BadPhoto, decode_photo, digest_of, read_photo


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
    #: Of the file's bytes.
    digest: int = 0
    #: Boxes found, left by the size and aspect rules, left by merging.
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
    """Reads one photo, finds its boxes, and selects its proposals.

    Args:
        photo (Photo): The photo.
        rules (Rules): How.

    Returns:
        Record: With ``reason`` set if the photo cannot be used. No photo raises an exception.
    """
    try:
        content = read_photo(photo.path)
        image = decode_photo(content)
        start = time.thread_time()
        raw = find_boxes(image, photo, rules)
    except BadPhoto as error:
        return Record(photo.image_id, photo.file_name, num_bytes(photo), reason=str(error))
    except (cv2.error, MemoryError) as error:
        reason = f'search failed: {getattr(error, "err", None) or "out of memory"}'
        return Record(photo.image_id, photo.file_name, num_bytes(photo), reason=reason)
    searched = time.thread_time()
    ruled = filter_boxes(raw, rules.min_area, rules.max_aspect)
    merged = merge_boxes(ruled, rules.merge_iou, rules.merge, photo.image_id, rules.seed)
    boxes = sample_boxes(merged, rules.max_boxes, photo.image_id, rules.seed)
    cpu = (searched - start, time.thread_time() - searched)
    counts = (len(raw), len(ruled), len(merged))
    size, digest = image.shape[:2], digest_of(content)
    return Record(photo.image_id, photo.file_name, len(content), '', size, boxes, digest, counts, cpu)


def num_bytes(photo):
    """Size of a photo's file; -1 if it cannot be read."""
    try:
        return os.stat(photo.path).st_size
    except OSError:
        return -1
