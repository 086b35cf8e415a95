"""What grouping needs to know of the segments: boxes, sizes, neighbours, histograms of colour and texture.

Image filters are OpenCV's own, called with the arguments that its selective search gives them.
"""

import functools

import cv2
import numpy as np

from ccop_mm.proposals.selective_search.jit import kernel

COLOUR_BINS, TEXTURE_BINS = 25, 10
#: A float division, as in OpenCV; from the range and number of its bins.
_TEXTURE_BIN = (np.arange(256, dtype=np.float32) / (np.float32(256) / np.float32(TEXTURE_BINS))).astype(np.uint8)


class Plane:
    """One channel of an image, with the bins of its pixels.

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
        """(4, H * W) uint8, see :func:`signed_bins`, and (4, 2) int32, the bins of 0 in each derivative's two parts."""
        bins, zeros = zip(*map(signed_bins, derivatives(self.values)), strict=True)
        return np.stack(bins), np.array(zeros, np.int32)


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


def signed_bins(derivative):
    """Bins of a derivative's positive and negative part, in one number, since one of them is 0 at every pixel.

    OpenCV stretches each part to 0-255 by its extremes, in ``Mat.convertTo``. Python cannot call that;
    ``convertScaleAbs`` does the same where the result is not negative.

    Args:
        derivative (np.ndarray): (H, W) float32.

    Returns:
        tuple[np.ndarray, tuple]: (H * W,) uint8, the bin of the positive part where that is more than 0, else 10 + the
        bin of the negative part; the bins that 0 falls in, in the positive and in the negative part.
    """
    derivative = np.ascontiguousarray(derivative)
    low, high, _, _ = cv2.minMaxLoc(derivative)
    stretched, zeros = [], []
    for part_low, part_high in ((max(low, 0.0), max(high, 0.0)), (min(low, 0.0), min(high, 0.0))):
        with np.errstate(all='ignore'):  # a flat part gives infinities, which end as 0, in OpenCV too
            scale = np.float64(255) / (part_high - part_low)
            shift = -255 * np.float64(part_low) / (part_high - part_low)
        stretched.append(cv2.convertScaleAbs(derivative, alpha=scale, beta=shift).reshape(-1))
        zeros.append(_TEXTURE_BIN[cv2.convertScaleAbs(np.zeros((1, 1), np.float32), alpha=scale, beta=shift)[0, 0]])
    return choose_bins(derivative.reshape(-1), *stretched, _TEXTURE_BIN), tuple(zeros)


@kernel('uint8[::1](float32[::1], uint8[::1], uint8[::1], uint8[::1])')
def choose_bins(derivative, positive, negative, table):
    """``table[positive]`` where the derivative is more than 0, else ``len(bins) + table[negative]``; all of (P,)."""
    bins = np.empty(len(derivative), np.uint8)
    for p in range(len(derivative)):
        if derivative[p] > 0:
            bins[p] = table[positive[p]]
        else:
            bins[p] = TEXTURE_BINS + table[negative[p]]
    return bins


class Histograms:
    """Colour and texture of the segments of several segmentations of one image.

    Pixels are counted once, in the pieces into which the segmentations together cut the image; a segment's histogram is
    the sum of its pieces'.

    Args:
        planes (list[Plane]): The image.
        labels (list[np.ndarray]): (H, W) int32 of each segmentation.
    """

    def __init__(self, planes, labels):
        self.planes = planes
        self.pieces, self.labels_of_piece = overlay(np.stack([each.reshape(-1) for each in labels]))

    @functools.cached_property
    def _colour(self):
        num_pieces = len(self.labels_of_piece)
        return [count_bins(self.pieces, plane.colour_bins, num_pieces, COLOUR_BINS) for plane in self.planes]

    @functools.cached_property
    def _texture(self):
        num_pieces = len(self.labels_of_piece)
        return [count_bins(self.pieces, plane.texture_bins[0], num_pieces, 2 * TEXTURE_BINS) for plane in self.planes]

    def colours(self, index, count):
        """(V, C * 25) float32 shares of the ``count`` segments of the segmentation of that index."""
        labels = np.ascontiguousarray(self.labels_of_piece[:, index])
        counts = np.hstack([gather(counts, labels, count) for counts in self._colour]).astype(np.float32)
        # OpenCV adds up floats, one after the other, which rounds in segments of more than 2^24 / 3 pixels.
        return counts / np.cumsum(counts, axis=1)[:, -1:]

    def textures(self, index, count):
        """(V, C * 80) float32 shares of the ``count`` segments of the segmentation of that index."""
        labels = np.ascontiguousarray(self.labels_of_piece[:, index])
        counts = np.hstack(
            [
                split_signs(gather(counts, labels, count), plane.texture_bins[1])
                for counts, plane in zip(self._texture, self.planes, strict=True)
            ]
        )
        return counts.astype(np.float32) / counts.sum(axis=1, keepdims=True).astype(np.float32)


@kernel()
def _place(table, found, labels):
    """Where in the table of 2^n places this piece is, or belongs."""
    key = np.int64(0)
    for label in labels:
        key = key * 1000003 + label
    place = (key ^ (key >> 17)) & (len(table) - 1)
    while table[place] >= 0:
        same = True
        for k in range(len(labels)):
            same = same and found[table[place], k] == labels[k]
        if same:
            break
        place = (place + 1) & (len(table) - 1)
    return place


@kernel('Tuple((int32[::1], int32[:, ::1]))(int32[:, ::1])')
def overlay(labels):
    """Cuts an image along the borders of several segmentations.

    Args:
        labels (np.ndarray): (K, P) int32.

    Returns:
        tuple[np.ndarray, np.ndarray]: (P,) int32 piece of each pixel; (A, K) int32 labels of each piece.
    """
    num, count = labels.shape
    pieces = np.empty(count, np.int32)
    found, num_found = np.empty((512, num), np.int32), 0
    # An open hash table of the pieces, -1 where empty; rebuilt, twice as large, when half full.
    table = np.full(1024, -1, np.int32)
    piece = -1
    for p in range(count):
        same = piece >= 0
        for k in range(num):
            same = same and found[piece, k] == labels[k, p]
        if not same:
            if num_found == len(found):
                found = np.concatenate((found, np.empty_like(found)))
                table = np.full(2 * len(table), -1, np.int32)
                for other in range(num_found):
                    table[_place(table, found, found[other])] = other
            place = _place(table, found, labels[:, p])
            if table[place] < 0:
                table[place] = num_found
                found[num_found] = labels[:, p]
                num_found += 1
            piece = table[place]
        pieces[p] = piece
    return pieces, found[:num_found].copy()


@kernel('int32[:, :, ::1](int32[::1], uint8[:, ::1], int64, int64)')
def count_bins(labels, bins, num_labels, num_bins):
    """Histograms of labelled pixels.

    Args:
        labels (np.ndarray): (P,) int32 in [0, num_labels).
        bins (np.ndarray): (C, P) uint8 in [0, num_bins), of each channel.
        num_labels (int): A.
        num_bins (int): B.

    Returns:
        np.ndarray: (C, A, B) int32 pixels.
    """
    counts = np.zeros((len(bins), num_labels, num_bins), np.int32)
    for channel in range(len(bins)):
        for p in range(len(labels)):
            counts[channel, labels[p], bins[channel, p]] += 1
    return counts


@kernel('int32[:, ::1](int32[:, :, ::1], int32[::1], int64)')
def gather(counts, labels, num_labels):
    """Adds up the histograms of pieces with one label: (C, A, B) int32, (A,) int32 labels -> (V, C * B) int32."""
    channels, pieces, bins = counts.shape
    sums = np.zeros((num_labels, channels * bins), np.int32)
    for channel in range(channels):
        for piece in range(pieces):
            for i in range(bins):
                sums[labels[piece], channel * bins + i] += counts[channel, piece, i]
    return sums


@kernel('int32[:, ::1](int32[:, ::1], int32[:, ::1])')
def split_signs(counts, zeros):
    """Histograms of the positive and of the negative part of each derivative.

    Args:
        counts (np.ndarray): (V, D * 20) int32 pixels by :func:`signed_bins`.
        zeros (np.ndarray): (D, 2) int32 bins of 0; where one part is not 0 the other is.

    Returns:
        np.ndarray: (V, D * 20) int32; of each derivative the positive part's 10 bins, then the negative part's.
    """
    parts = counts.copy()
    for v in range(len(counts)):
        for d in range(len(zeros)):
            begin = 2 * TEXTURE_BINS * d
            positive = counts[v, begin : begin + TEXTURE_BINS].sum()
            negative = counts[v, begin + TEXTURE_BINS : begin + 2 * TEXTURE_BINS].sum()
            parts[v, begin + zeros[d, 0]] += negative
            parts[v, begin + TEXTURE_BINS + zeros[d, 1]] += positive
    return parts


def describe(labels, count):
    """Boxes, sizes and neighbours of the segments.

    Segments are neighbours if a pixel of one has one of the other to its left, above, or above to the left. As in
    OpenCV, the pixels of the first row and column do not look, so a photo of one row has no neighbours at all.

    Args:
        labels (np.ndarray): (H, W) int32 in [0, count).
        count (int): V.

    Returns:
        tuple: (V, 4) int32 xyxy boxes, exclusive; (V,) int32 sizes in pixels; (E, 2) int32 pairs i < j, ascending.
    """
    boxes, sizes, table = scan(labels, count)
    pairs = np.sort(table[table >= 0])
    return boxes, sizes, np.stack(np.divmod(pairs, count), axis=1).astype(np.int32)


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


@kernel('Tuple((int32[:, ::1], int32[::1], int64[::1]))(int32[:, ::1], int64)')
def scan(labels, count):
    """The work of :func:`describe`: boxes, sizes, and a table of i * count + j for neighbours i < j, -1 where empty."""
    height, width = labels.shape
    boxes, sizes = np.empty((count, 4), np.int32), np.zeros(count, np.int32)
    boxes[:, 0], boxes[:, 1], boxes[:, 2:] = width, height, 0
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
                        for value in old:
                            if value >= 0:
                                _insert(table, value)
    return boxes, sizes, table
