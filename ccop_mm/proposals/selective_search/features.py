"""What grouping needs to know of the segments: boxes, sizes, neighbours, histograms of colour and texture.

Image filters are OpenCV's own, called with the arguments that its selective search gives them.
"""

import functools

import cv2
import numpy as np

from ccop_mm.proposals.selective_search.jit import kernel

COLOUR_BINS, TEXTURE_BINS = 25, 10
#: Eight derivatives a plane: positive and negative part along x, y and the two diagonals.
DIRECTIONS = 8


class Plane:
    """One channel of an image, with the bins of its pixels; computed when first asked for.

    Args:
        values (np.ndarray): (H, W) uint8.
    """

    def __init__(self, values):
        self.values = np.ascontiguousarray(values)

    @functools.cached_property
    def colour_bins(self):
        """(1, H * W) uint8 in [0, 25)."""
        return (self.values.astype(np.uint16) * COLOUR_BINS >> 8).astype(np.uint8).reshape(1, -1)

    @functools.cached_property
    def texture_bins(self):
        """(8, H * W) uint8 in [0, 10)."""
        parts = [part for derivative in derivatives(self.values) for part in _halves(derivative)]
        return cv2.LUT(np.stack(parts), _TEXTURE_BIN).reshape(DIRECTIONS, -1)


#: A float division, as in OpenCV; from the range and number of its bins.
_TEXTURE_BIN = (np.arange(256, dtype=np.float32) / (np.float32(256) / np.float32(TEXTURE_BINS))).astype(np.uint8)


def derivatives(values):
    """Scharr derivatives along x, y and both diagonals; the latter of the image turned by 45 degrees, turned back.

    Args:
        values (np.ndarray): (H, W) uint8.

    Returns:
        list[np.ndarray]: Four of (H, W) float32.
    """
    height, width = values.shape
    centre = (width / 2, height / 2)
    turn = cv2.getRotationMatrix2D(centre, 45.0, 1.0)
    wide, high = _turned_size(centre, width, height)
    turn[:, 2] += (wide / 2 - centre[0], high / 2 - centre[1])
    turned = cv2.warpAffine(values, turn, (wide, high))
    back = cv2.getRotationMatrix2D((wide // 2, high // 2), -45.0, 1.0)
    left, top = max(0, (wide - width) // 2), max(0, (high - height) // 2)
    straight = [cv2.Scharr(values, cv2.CV_32F, dx, dy) for dx, dy in ((1, 0), (0, 1))]
    diagonal = [cv2.Scharr(turned, cv2.CV_32F, dx, dy) for dx, dy in ((1, 0), (0, 1))]
    # OpenCV warps the whole box round the turned image; beyond the photo's corner nothing of it is read.
    size = (left + width, top + height)
    return straight + [cv2.warpAffine(turned, back, size)[top:, left:] for turned in diagonal]


def _turned_size(centre, width, height):
    """Size of the smallest whole-pixel box round a rectangle turned by 45 degrees, as ``RotatedRect::boundingRect``."""
    corners = cv2.boxPoints((centre, (width, height), 45.0))
    return (int(n) for n in np.ceil(corners.max(0)) - np.floor(corners.min(0)) + 1)


def _halves(derivative):
    """The positive and the negative part, each stretched to 0-255: two of (H, W) uint8."""
    for kind in (cv2.THRESH_TOZERO, cv2.THRESH_TOZERO_INV):
        part = cv2.threshold(derivative, 0, 0, kind)[1]
        low, high, _, _ = cv2.minMaxLoc(part)
        with np.errstate(all='ignore'):  # a flat part gives infinities, which end as 0, in OpenCV too
            scale = np.float64(255) / (high - low)
            # Does what Mat.convertTo does, which Python cannot call: none of the values is negative.
            yield cv2.convertScaleAbs(part, alpha=scale, beta=-255 * np.float64(low) / (high - low))


@kernel('int32[:, ::1](int32[::1], uint8[:, ::1], int64, int64)')
def count_bins(labels, bins, num_labels, num_bins):
    """Histograms of each segment.

    Args:
        labels (np.ndarray): (P,) int32 in [0, num_labels).
        bins (np.ndarray): (C, P) uint8 in [0, num_bins), of each channel.
        num_labels (int): V.
        num_bins (int): B.

    Returns:
        np.ndarray: (V, C * B) int32 pixels.
    """
    channels = len(bins)
    counts = np.zeros((num_labels, channels * num_bins), np.int32)
    for channel in range(channels):
        for p in range(len(labels)):
            counts[labels[p], channel * num_bins + bins[channel, p]] += 1
    return counts


@kernel('float32[:, ::1](int32[:, ::1])')
def normalize(counts):
    """Divides each row by its sum: (V, B) int32 -> (V, B) float32."""
    shares = np.empty(counts.shape, np.float32)
    for v in range(counts.shape[0]):
        total = np.float32(0)
        for i in range(counts.shape[1]):
            total += np.float32(counts[v, i])
        for i in range(counts.shape[1]):
            shares[v, i] = np.float32(counts[v, i]) / total
    return shares


@kernel()
def _insert(table, value):
    """Adds a value to a table of 2^n places; False if it was there."""
    mask = len(table) - 1
    place = (value ^ (value >> 15)) & mask
    while table[place] >= 0:
        if table[place] == value:
            return False
        place = (place + 1) & mask
    table[place] = value
    return True


@kernel('Tuple((int32[:, ::1], int32[::1], int32[:, ::1]))(int32[:, ::1], int64)')
def describe(labels, count):
    """Boxes, sizes and neighbours of the segments.

    Segments are neighbours if a pixel of one has one of the other to its left, above, or above to the left. As in OpenCV,
    the pixels of the first row and of the first column do not look, so a photo of one row has no neighbours at all.

    Args:
        labels (np.ndarray): (H, W) int32 in [0, count).
        count (int): V.

    Returns:
        tuple: (V, 4) int32 xyxy boxes, exclusive; (V,) int32 sizes in pixels; (E, 2) int32 pairs i < j, ascending.
    """
    height, width = labels.shape
    boxes, sizes = np.empty((count, 4), np.int32), np.zeros(count, np.int32)
    boxes[:, 0], boxes[:, 1], boxes[:, 2:] = width, height, 0
    # An open hash table of the pairs met, i * count + j, -1 where empty.
    table, num_pairs, last = np.full(1024, -1), 0, -1
    for y in range(height):
        for x in range(width):
            this = labels[y, x]
            sizes[this] += 1
            boxes[this, 0], boxes[this, 1] = min(boxes[this, 0], x), min(boxes[this, 1], y)
            boxes[this, 2], boxes[this, 3] = max(boxes[this, 2], x + 1), max(boxes[this, 3], y + 1)
            if x == 0 or y == 0:
                continue
            for other in (labels[y, x - 1], labels[y - 1, x], labels[y - 1, x - 1]):
                if other == this:
                    continue
                pair = np.int64(min(this, other)) * count + max(this, other)
                if pair == last:
                    continue
                last = pair
                if _insert(table, pair):
                    num_pairs += 1
                    if 2 * num_pairs > len(table):
                        old, table = table, np.full(2 * len(table), -1)
                        for value in old[old >= 0]:
                            _insert(table, value)
    found = np.sort(table[table >= 0])
    pairs = np.empty((num_pairs, 2), np.int32)
    for e in range(num_pairs):
        pairs[e, 0], pairs[e, 1] = found[e] // count, found[e] % count
    return boxes, sizes, pairs
