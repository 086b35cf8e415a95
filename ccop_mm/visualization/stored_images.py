"""Samples images of a proposals file for figures."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ccop_mm.proposals import ProposalStore
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import UnreadableImageError, load_image

#: File name, (h, w, 3) uint8 BGR image, and (n, 4) float32 xyxy boxes in pixels.
StoredImage = tuple[str, np.ndarray, np.ndarray]


def sample_stored_images(
    store: ProposalStore, image_root: str | Path, seed: int = 0, min_boxes: int = 0
) -> Iterator[StoredImage | str]:
    """Loads the images of a proposals file one by one, in random order.

    Args:
        store (ProposalStore): Proposals.
        image_root (str | Path): Root folder of the images.
        seed (int): Random seed of the order.
        min_boxes (int): Images with fewer boxes are left out.

    Yields:
        tuple[str, np.ndarray, np.ndarray] | str: File name, image and boxes; or, if an image cannot be used, its file
        name and the reason as one line.

    Raises:
        InputError: The folder does not exist.
    """
    if not Path(image_root).is_dir():
        raise InputError(f'{image_root} is not a folder; pass the root folder of the images of the proposals file')
    for image_id in np.random.default_rng(seed).permutation(store.image_ids).tolist():
        name, boxes = store.file_name(image_id), store.boxes(image_id)
        if len(boxes) < min_boxes:
            continue
        try:
            image, _ = load_image(Path(image_root, name))
        except UnreadableImageError as error:
            yield f'{name}: {error}'
            continue
        if image.shape[:2] != store.size(image_id):
            actual, expected = _format_size(image.shape[:2]), _format_size(store.size(image_id))
            yield f'{name}: {actual}, but {expected} in the proposals'
            continue
        yield name, image, boxes


def _format_size(shape: tuple[int, ...]) -> str:
    return f'{shape[1]} x {shape[0]} px'
