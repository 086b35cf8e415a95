"""Features of the segments for grouping: boxes, sizes, neighbors, and histograms of color and texture.

Image filters are OpenCV functions, called with the arguments that its selective search passes.
"""

import functools
from collections.abc import Sequence

import cv2
import numpy as np

from ccop_mm.proposals.selective_search.jit import kernel

COLOR_BINS, TEXTURE_BINS = 25, 10
#: Bin of each stretched derivative value: a float32 division of the value by the bin width, as in OpenCV.
_TEXTURE_BIN = (np.arange(256, dtype=np.float32) / (np.float32(256) / np.float32(TEXTURE_BINS))).astype(np.uint8)


class Channel:
    """One channel of an image, and the histogram bins of its pixels.

    Args:
        values (np.ndarray): (H, W) uint8.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = np.ascontiguousarray(values)

    @functools.cached_property
    def color_bins(self) -> np.ndarray:
        """np.ndarray: (1, H * W) uint8 in [0, 25)."""
        return (self.values.astype(np.uint16) * COLOR_BINS >> 8).astype(np.uint8).reshape(1, -1)

    @functools.cached_property
    def texture_bins(self) -> tuple[np.ndarray, np.ndarray]:
        """tuple[np.ndarray, np.ndarray]: (4, H * W) uint8 bins and (4, 2) int32 bins of 0, see :func:`signed_bins`."""
        bins, zeros = zip(*map(signed_bins, derivatives(self.values)), strict=True)
        return np.stack(bins), np.array(zeros, np.int32)


def derivatives(values: np.ndarray) -> list[np.ndarray]:
    """Computes Scharr derivatives along x, y and both diagonals.

    Diagonal derivatives are those along x and y of the image rotated by 45 degrees, rotated back.

    Args:
        values (np.ndarray): (H, W) uint8.

    Returns:
        list[np.ndarray]: Four arrays (H, W) float32.
    """
    height, width = values.shape
    center = (width / 2, height / 2)
    rotation = cv2.getRotationMatrix2D(center, 45.0, 1.0)
    wide, high = _rotated_size(center, width, height)
    rotation[:, 2] += (wide / 2 - center[0], high / 2 - center[1])
    rotated = cv2.warpAffine(values, rotation, (wide, high))
    back = cv2.getRotationMatrix2D((wide // 2, high // 2), -45.0, 1.0)
    left, top = max(0, (wide - width) // 2), max(0, (high - height) // 2)
    axial = [cv2.Scharr(values, cv2.CV_32F, dx, dy) for dx, dy in ((1, 0), (0, 1))]
    diagonal = [cv2.Scharr(rotated, cv2.CV_32F, dx, dy) for dx, dy in ((1, 0), (0, 1))]
    # OpenCV warps the whole bounding box of the rotated image, but reads nothing beyond the corner of the original.
    size = (left + width, top + height)
    return axial + [cv2.warpAffine(derivative, back, size)[top:, left:] for derivative in diagonal]


def _rotated_size(center: tuple[float, float], width: int, height: int) -> tuple[int, int]:
    """Computes the size of the bounding box, in whole pixels, of a rectangle rotated by 45 degrees.

    As ``RotatedRect::boundingRect`` does.
    """
    corners = cv2.boxPoints((center, (width, height), 45.0))
    wide, high = np.ceil(corners.max(0)) - np.floor(corners.min(0)) + 1
    return int(wide), int(high)


def signed_bins(derivative: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Computes the bins of a derivative's positive and negative part as one number per pixel.

    One number is enough because one of the parts is 0 at every pixel. OpenCV stretches each part to 0-255 by its
    extremes with ``Mat.convertTo``, which has no Python binding; ``convertScaleAbs`` is equal for nonnegative results.

    Args:
        derivative (np.ndarray): (H, W) float32.

    Returns:
        tuple[np.ndarray, tuple[int, int]]: (H * W,) uint8, the bin of the positive part where that is above 0, else the
        bin of the negative part plus 10; the bins of the value 0 in the positive and in the negative part.
    """
    derivative = np.ascontiguousarray(derivative)
    low, high, _, _ = cv2.minMaxLoc(derivative)
    stretched, zeros = [], []
    for part_low, part_high in ((max(low, 0.0), max(high, 0.0)), (min(low, 0.0), min(high, 0.0))):
        with np.errstate(all='ignore'):  # a constant part gives infinities, which become 0, as in OpenCV
            scale = np.float64(255) / (part_high - part_low)
            shift = -255 * np.float64(part_low) / (part_high - part_low)
        stretched.append(cv2.convertScaleAbs(derivative, alpha=scale, beta=shift).reshape(-1))
        zeros.append(_TEXTURE_BIN[cv2.convertScaleAbs(np.zeros((1, 1), np.float32), alpha=scale, beta=shift)[0, 0]])
    bins = combine_signs(derivative.reshape(-1), *stretched, _TEXTURE_BIN)
    return bins, (zeros[0], zeros[1])


@kernel('uint8[::1](float32[::1], uint8[::1], uint8[::1], uint8[::1])')
def combine_signs(derivative: np.ndarray, positive: np.ndarray, negative: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Returns (P,) ``table[positive]`` where the derivative is above 0, else ``TEXTURE_BINS + table[negative]``."""
    bins = np.empty(len(derivative), np.uint8)
    for p in range(len(derivative)):
        if derivative[p] > 0:
            bins[p] = table[positive[p]]
        else:
            bins[p] = TEXTURE_BINS + table[negative[p]]
    return bins


class Histograms:
    """Color and texture histograms of the segments of several segmentations of one image.

    The segmentations together divide the image into pieces. Pixels are counted once, by piece; the histogram of a
    segment is the sum over its pieces.

    Args:
        channels (Sequence[Channel]): Channels of the image.
        labels (Sequence[np.ndarray]): (H, W) int32 labels of each segmentation.
    """

    def __init__(self, channels: Sequence[Channel], labels: Sequence[np.ndarray]) -> None:
        self.channels = channels
        self.pieces, self.labels_of_piece = overlay(np.stack([each.reshape(-1) for each in labels]))

    @functools.cached_property
    def _piece_colors(self) -> list[np.ndarray]:
        num_pieces = len(self.labels_of_piece)
        return [count_bins(self.pieces, channel.color_bins, num_pieces, COLOR_BINS) for channel in self.channels]

    @functools.cached_property
    def _piece_textures(self) -> list[np.ndarray]:
        num_pieces = len(self.labels_of_piece)
        return [
            count_bins(self.pieces, channel.texture_bins[0], num_pieces, 2 * TEXTURE_BINS) for channel in self.channels
        ]

    def colors(self, index: int, count: int) -> np.ndarray:
        """Computes (V, C * 25) float32 normalized histograms of the ``count`` segments of segmentation ``index``."""
        labels = np.ascontiguousarray(self.labels_of_piece[:, index])
        counts = np.hstack([sum_by_label(counts, labels, count) for counts in self._piece_colors]).astype(np.float32)
        # OpenCV sums floats one after the other, which rounds in segments of more than 2^24 / 3 pixels.
        return counts / np.cumsum(counts, axis=1)[:, -1:]

    def textures(self, index: int, count: int) -> np.ndarray:
        """Computes (V, C * 80) float32 normalized histograms of the ``count`` segments of segmentation ``index``."""
        labels = np.ascontiguousarray(self.labels_of_piece[:, index])
        counts = np.hstack(
            [
                split_signs(sum_by_label(counts, labels, count), channel.texture_bins[1])
                for counts, channel in zip(self._piece_textures, self.channels, strict=True)
            ]
        )
        return counts.astype(np.float32) / counts.sum(axis=1, keepdims=True).astype(np.float32)


@kernel()
def _slot(table: np.ndarray, found: np.ndarray, labels: np.ndarray) -> np.int64:
    """Returns the slot of a piece in the hash table of 2^n slots, or the empty slot for it."""
    key = np.int64(0)
    for label in labels:
        key = key * 1000003 + label
    slot = (key ^ (key >> 17)) & (len(table) - 1)
    while table[slot] >= 0:
        same = True
        for k in range(len(labels)):
            same = same and found[table[slot], k] == labels[k]
        if same:
            break
        slot = (slot + 1) & (len(table) - 1)
    return slot


@kernel('Tuple((int32[::1], int32[:, ::1]))(int32[:, ::1])')
def overlay(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divides an image along the boundaries of several segmentations.

    Args:
        labels (np.ndarray): (K, P) int32.

    Returns:
        tuple[np.ndarray, np.ndarray]: (P,) int32 piece of each pixel; (A, K) int32 labels of each piece.
    """
    num, count = labels.shape
    pieces = np.empty(count, np.int32)
    found, num_found = np.empty((512, num), np.int32), 0
    # Open-addressing hash table of the pieces, -1 where empty; rebuilt with twice the size when half full.
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
                    table[_slot(table, found, found[other])] = other
            slot = _slot(table, found, labels[:, p])
            if table[slot] < 0:
                table[slot] = num_found
                found[num_found] = labels[:, p]
                num_found += 1
            piece = table[slot]
        pieces[p] = piece
    return pieces, found[:num_found].copy()


@kernel('int32[:, :, ::1](int32[::1], uint8[:, ::1], int64, int64)')
def count_bins(labels: np.ndarray, bins: np.ndarray, num_labels: int, num_bins: int) -> np.ndarray:
    """Computes the histograms of labeled pixels.

    Args:
        labels (np.ndarray): (P,) int32 in [0, num_labels).
        bins (np.ndarray): (C, P) uint8 in [0, num_bins), for each channel.
        num_labels (int): Number of labels A.
        num_bins (int): Number of bins B.

    Returns:
        np.ndarray: (C, A, B) int32 numbers of pixels.
    """
    counts = np.zeros((len(bins), num_labels, num_bins), np.int32)
    for channel in range(len(bins)):
        for p in range(len(labels)):
            counts[channel, labels[p], bins[channel, p]] += 1
    return counts


@kernel('int32[:, ::1](int32[:, :, ::1], int32[::1], int64)')
def sum_by_label(counts: np.ndarray, labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Sums the histograms (C, A, B) int32 of pieces with the same label (A,) int32; returns (V, C * B) int32."""
    channels, pieces, bins = counts.shape
    sums = np.zeros((num_labels, channels * bins), np.int32)
    for channel in range(channels):
        for piece in range(pieces):
            for i in range(bins):
                sums[labels[piece], channel * bins + i] += counts[channel, piece, i]
    return sums


@kernel('int32[:, ::1](int32[:, ::1], int32[:, ::1])')
def split_signs(counts: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """Separates the histograms of the positive and the negative part of each derivative.

    Args:
        counts (np.ndarray): (V, D * 20) int32 histograms of :func:`signed_bins`.
        zeros (np.ndarray): (D, 2) int32 bins of the value 0, which one of the parts has at every pixel.

    Returns:
        np.ndarray: (V, D * 20) int32; for each derivative 10 bins of the positive part, then 10 of the negative part.
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


def describe(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes boxes, sizes and neighbors of the segments.

    Segments are neighbors if a pixel of one has a pixel of the other to its left, above, or above to the left. As in
    OpenCV, this is not tested for pixels of the first row and column, so an image of one row has no neighbors.

    Args:
        labels (np.ndarray): (H, W) int32 in [0, count).
        count (int): Number of segments V.

    Returns:
        tuple[np.ndarray, np.ndarray, np.ndarray]: (V, 4) int32 xyxy boxes, x2 and y2 exclusive; (V,) int32 sizes in
        pixels; (E, 2) int32 neighbors i < j, ascending.
    """
    boxes, sizes, table = scan(labels, count)
    pairs = np.sort(table[table >= 0])
    return boxes, sizes, np.stack(np.divmod(pairs, count), axis=1).astype(np.int32)


@kernel()
def _insert(table: np.ndarray, value: int) -> bool:
    """Inserts a value into a hash table of 2^n slots; returns False if it was present."""
    mask = len(table) - 1
    slot = (value ^ (value >> 15)) & mask
    while table[slot] >= 0:
        if table[slot] == value:
            return False
        slot = (slot + 1) & mask
    table[slot] = value
    return True


@kernel('Tuple((int32[:, ::1], int32[::1], int64[::1]))(int32[:, ::1], int64)')
def scan(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes boxes, sizes, and a hash table of i * count + j for neighbors i < j, -1 where empty."""
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
