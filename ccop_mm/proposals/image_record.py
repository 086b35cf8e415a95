"""Proposals of one image: candidates, filtering, merging and sampling."""

import os
import time
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from ccop_mm.proposals.candidates import find_candidates
from ccop_mm.proposals.selection import filter_boxes, merge_boxes, sample_boxes
from ccop_mm.proposals.settings import ProposalSettings
from ccop_mm.utils.images import (
    ImageFile,
    UnreadableImageError,
    content_digest,
    count_value_bits,
    decode_image,
    read_image_bytes,
)


@dataclass(frozen=True)
class ImageRecord:
    """Result of one image. All fields but ``boxes`` are JSON values."""

    image_id: int
    file_name: str
    #: Size of the file, -1 if it cannot be read. A resumed run processes an image again if its size has changed.
    num_bytes: int
    #: Why the image cannot be used; empty if it can. The fields below are valid only if it is empty.
    reason: str = ''
    #: Height and width in pixels.
    size: tuple[int, int] = (0, 0)
    #: (n, 4) float32 xyxy proposals in pixels; None if the image cannot be used.
    boxes: np.ndarray | None = None
    #: :func:`~ccop_mm.utils.images.content_digest` of the file.
    digest: int = 0
    #: Number of candidates, of boxes left by the filter, and of boxes left by merging.
    counts: tuple[int, int, int] = (0, 0, 0)
    #: :func:`~ccop_mm.utils.images.count_value_bits` of the file.
    value_bits: int = 0
    #: CPU seconds of the search and of the selection.
    cpu: tuple[float, float] = (0.0, 0.0)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values, with the boxes as a flat list."""
        boxes = None if self.boxes is None else self.boxes.ravel().tolist()
        return {**asdict(self), 'boxes': boxes}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> 'ImageRecord':
        """Restores a record from :meth:`to_json`."""
        boxes = values['boxes']
        return cls(**{**values, 'boxes': None if boxes is None else np.array(boxes, np.float32).reshape(-1, 4)})


def propose_image(image_file: ImageFile, settings: ProposalSettings) -> ImageRecord:
    """Generates the proposals of one image, as ``tools/propose.py`` does.

    Args:
        image_file (ImageFile): Image to read.
        settings (ProposalSettings): How the proposals are generated.

    Returns:
        ImageRecord: The proposals. An unusable image raises no exception but sets ``reason``.
    """
    try:
        content = read_image_bytes(image_file.path)
        image = decode_image(content)
        start = time.thread_time()
        candidates = find_candidates(image, image_file, settings)
    except UnreadableImageError as error:
        return ImageRecord(image_file.image_id, image_file.file_name, file_size(image_file), reason=str(error))
    except (cv2.error, MemoryError) as error:
        reason = f'search failed: {getattr(error, "err", None) or "out of memory"}'
        return ImageRecord(image_file.image_id, image_file.file_name, file_size(image_file), reason=reason)
    searched = time.thread_time()
    filtered = filter_boxes(candidates, settings.min_area, settings.max_aspect)
    merged = merge_boxes(filtered, settings.merge_iou, settings.merge, image_file.image_id, settings.seed)
    boxes = sample_boxes(merged, settings.max_boxes, image_file.image_id, settings.seed)
    height, width = image.shape[:2]
    return ImageRecord(
        image_id=image_file.image_id,
        file_name=image_file.file_name,
        num_bytes=len(content),
        size=(height, width),
        boxes=boxes,
        digest=content_digest(content),
        counts=(len(candidates), len(filtered), len(merged)),
        value_bits=count_value_bits(content),
        cpu=(searched - start, time.thread_time() - searched),
    )


def file_size(image_file: ImageFile) -> int:
    """Returns the size of an image file in bytes, or -1 if it cannot be read."""
    try:
        return os.stat(image_file.path).st_size
    except OSError:
        return -1
