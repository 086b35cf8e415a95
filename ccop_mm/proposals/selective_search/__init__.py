"""Selective search (Uijlings et al., IJCV 2013): the set of boxes that OpenCV's ximgproc gives, in less time.

OpenCV sorts the edges of an image and filters its texture anew for each k, passes over the whole image for the colours
of each segment, and sorts all similarities at each join. Here edges and textures are computed once an image, pixels are
counted once for all its segmentations (:mod:`.features`), and similarities are kept in a heap (:mod:`.grouping`).

Equality rests on rounding where OpenCV rounds and on breaking ties as it does; each module says how.
"""

import cv2
import numpy as np

from ccop_mm.proposals.selective_search.features import Histograms, Plane, describe
from ccop_mm.proposals.selective_search.graph import Graph
from ccop_mm.proposals.selective_search.grouping import group, group_exactly

#: Weights of the similarities of colour, fill, texture, size. OpenCV writes a third as 0.3333.
_ALL, _NO_COLOUR = (0.25, 0.25, 0.25, 0.25), (0, 0.3333, 0.3333, 0.3333)
_FILL, _SIZE = (0, 1, 0, 0), (0, 0, 0, 1)
#: OpenCV's presets: the images (see :func:`_images`), the k of the segmentations, the similarities.
MODES = {
    'single': (('hsv',), (200,), (_ALL,)),
    'fast': (('hsv', 'lab'), (150, 300, 450), (_ALL, _NO_COLOUR)),
    'quality': (
        ('hsv', 'lab', 'gray', 'blue', 'rgi'),
        (150, 300, 450, 600, 750),
        (_ALL, _NO_COLOUR, _FILL, _SIZE),
    ),
}


def search(image, mode):
    """Boxes of all segments and of all that grouping joins.

    Args:
        image (np.ndarray): (H, W, 3) uint8 in BGR order.
        mode (str): A key of :data:`MODES`.

    Returns:
        np.ndarray: (n, 4) int32 distinct xyxy boxes, ascending; x2 and y2 are exclusive.
    """
    names, ks, measures = MODES[mode]
    boxes = []
    for planes in _images(image, names):
        graph = Graph(cv2.merge([plane.values for plane in planes]))
        labels, counts = zip(*map(graph.segment, ks), strict=True)
        histograms = Histograms(planes, labels)
        for index, count in enumerate(counts):
            boxes.extend(_hierarchies(histograms, index, labels[index], count, measures))
    return np.unique(np.concatenate(boxes), axis=0)


def _images(image, names):
    """The planes of each image; one that two images have in common is one object, so that its bins are shared.

    ``blue`` is meant to be hue: OpenCV keeps a reference to that plane, and overwrites it when it splits the photo.
    """

    def planes(code):
        return [Plane(values) for values in cv2.split(image if code is None else cv2.cvtColor(image, code))]

    images = {'hsv': planes(cv2.COLOR_BGR2HSV)}
    if 'lab' in names:
        images['lab'] = planes(cv2.COLOR_BGR2Lab)
    if 'rgi' in names:
        (blue, green, red), gray = planes(None), planes(cv2.COLOR_BGR2GRAY)
        images.update(gray=gray, blue=[blue], rgi=[red, green, *gray])
    return [images[name] for name in names]


def _hierarchies(histograms, index, labels, count, measures):
    """Boxes of one segmentation and of its hierarchies, one for each measure: a list of (n, 4) int32."""
    boxes, sizes, pairs = describe(labels, count)
    none = np.empty((count, 0), np.float32)
    colours = histograms.colours(index, count) if any(colour for colour, _, _, _ in measures) else none
    textures = histograms.textures(index, count) if any(texture for _, _, texture, _ in measures) else none
    found = [boxes]
    for measure in measures:
        weights = np.array(measure, np.float32)

        def regions():  # grouping changes them
            return boxes.copy(), sizes.copy(), colours.copy(), textures.copy()

        joined, finished = group(pairs, *regions(), weights, labels.size)
        if not finished:
            joined = group_exactly(pairs, *regions(), weights, labels.size)
        found.append(joined)
    return found
