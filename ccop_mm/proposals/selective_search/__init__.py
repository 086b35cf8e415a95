"""Selective search (Uijlings et al., IJCV 2013) with the same set of boxes as OpenCV's ximgproc, in less time.

OpenCV sorts the edges of an image and filters its texture again for each k, scans the whole image for the colors of
each segment, and sorts all similarities at each merge. Here edges and textures are computed once per image, pixels are
counted once for all its segmentations (:mod:`.features`), and similarities are kept in a heap (:mod:`.grouping`).

The boxes are equal because values are rounded where OpenCV rounds them, and ties are broken as OpenCV breaks them; each
module describes how.
"""

import cv2
import numpy as np

from ccop_mm.proposals.selective_search.features import Channel, Histograms, describe
from ccop_mm.proposals.selective_search.graph import Graph
from ccop_mm.proposals.selective_search.grouping import group, group_exactly

Weights = tuple[float, float, float, float]

#: Weights of the similarities of color, fill, texture and size. OpenCV writes one third as 0.3333.
_ALL, _NO_COLOR = (0.25, 0.25, 0.25, 0.25), (0, 0.3333, 0.3333, 0.3333)
_FILL, _SIZE = (0, 1, 0, 0), (0, 0, 0, 1)
#: OpenCV's presets: images (see :func:`_image_channels`), k of each segmentation, weights of the similarities.
MODES: dict[str, tuple[tuple[str, ...], tuple[int, ...], tuple[Weights, ...]]] = {
    'single': (('hsv',), (200,), (_ALL,)),
    'fast': (('hsv', 'lab'), (150, 300, 450), (_ALL, _NO_COLOR)),
    'quality': (
        ('hsv', 'lab', 'gray', 'blue', 'rgi'),
        (150, 300, 450, 600, 750),
        (_ALL, _NO_COLOR, _FILL, _SIZE),
    ),
}


def search(image: np.ndarray, mode: str) -> np.ndarray:
    """Returns the boxes of all segments and of all regions that grouping merges.

    Args:
        image (np.ndarray): (H, W, 3) uint8 in BGR order.
        mode (str): Key of :data:`MODES`.

    Returns:
        np.ndarray: (n, 4) int32 distinct xyxy boxes in ascending order; x2 and y2 are exclusive.
    """
    names, ks, measures = MODES[mode]
    boxes: list[np.ndarray] = []
    for channels in _image_channels(image, names):
        graph = Graph(cv2.merge([channel.values for channel in channels]))
        labels, counts = zip(*map(graph.segment, ks), strict=True)
        histograms = Histograms(channels, labels)
        for index, count in enumerate(counts):
            boxes.extend(_hierarchies(histograms, index, labels[index], count, measures))
    return np.unique(np.concatenate(boxes), axis=0)


def _image_channels(image: np.ndarray, names: tuple[str, ...]) -> list[list[Channel]]:
    """Returns the channels of each image; a channel that two images share is one object, so that its bins are too.

    ``blue`` is meant to be hue: OpenCV keeps a reference to that channel and overwrites it when it splits the BGR
    image.
    """

    def split(code: int | None) -> list[Channel]:
        return [Channel(values) for values in cv2.split(image if code is None else cv2.cvtColor(image, code))]

    images = {'hsv': split(cv2.COLOR_BGR2HSV)}
    if 'lab' in names:
        images['lab'] = split(cv2.COLOR_BGR2Lab)
    if 'rgi' in names:
        (blue, green, red), gray = split(None), split(cv2.COLOR_BGR2GRAY)
        images.update(gray=gray, blue=[blue], rgi=[red, green, *gray])
    return [images[name] for name in names]


def _hierarchies(
    histograms: Histograms, index: int, labels: np.ndarray, count: int, measures: tuple[Weights, ...]
) -> list[np.ndarray]:
    """Returns (n, 4) int32 boxes of one segmentation, followed by those of its hierarchy for each measure."""
    boxes, sizes, pairs = describe(labels, count)
    unused = np.empty((count, 0), np.float32)
    colors = histograms.colors(index, count) if any(color for color, _, _, _ in measures) else unused
    textures = histograms.textures(index, count) if any(texture for _, _, texture, _ in measures) else unused
    found = [boxes]
    for measure in measures:
        weights = np.array(measure, np.float32)

        def regions() -> tuple[np.ndarray, ...]:  # copies, because grouping modifies them
            return boxes.copy(), sizes.copy(), colors.copy(), textures.copy()

        merged, finished = group(pairs, *regions(), weights, labels.size)
        if not finished:
            merged = group_exactly(pairs, *regions(), weights, labels.size)
        found.append(merged)
    return found
