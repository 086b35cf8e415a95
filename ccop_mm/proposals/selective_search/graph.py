"""Graph-based segmentation (Felzenszwalb and Huttenlocher, IJCV 2004), equal to OpenCV's ``GraphSegmentation``.

First pass: pixels are joined along the edges of the 4-neighbor grid, lightest first. An edge joins two components if
its weight is at most the threshold of both; the threshold of a component is the weight of its last join plus k divided
by its size. Second pass: components smaller than ``MIN_SIZE`` are joined to a neighbor along the lightest edge.

Two properties make this cheaper than OpenCV's implementation. First, the first pass does not depend on the order of
equal weights: components with a threshold of at least w are joined wherever an edge of weight w connects them, because
a join at w keeps the threshold at or above w, and other components never join again. Any sorting algorithm is therefore
valid (here a radix sort of the weights' bits), and each edge is needed once, whereas OpenCV lists it from both ends.
Second, the sorted edges are the same for every k.

The second pass does depend on the order of equal weights. It detects whether it did, and is then repeated with the
edges in the order of OpenCV's sort (:func:`~.grouping.std_sort`).
"""

import cv2
import numpy as np

from ccop_mm.proposals.selective_search.grouping import std_sort
from ccop_mm.proposals.selective_search.jit import kernel

#: OpenCV's defaults: sigma of switchToSelectiveSearchFast, a C++ float, and min_size of GraphSegmentation.
SIGMA = float(np.float32(0.8))
MIN_SIZE = 100


class Graph:
    """Sorted edges of one image, which segment it for any k.

    Args:
        image (np.ndarray): (H, W) or (H, W, C) uint8.
    """

    def __init__(self, image: np.ndarray) -> None:
        smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), SIGMA, None, SIGMA)
        self.shape = image.shape[:2]
        self.smooth = smooth.reshape(*self.shape, -1)
        weights, edges = edge_weights(self.smooth)
        self.weights, self.edges = sort_edges(weights, edges)
        self._exact_edges: tuple[np.ndarray, np.ndarray] | None = None

    def segment(self, k: float) -> tuple[np.ndarray, int]:
        """Segments the image.

        Args:
            k (float): Scale of the segments; larger values give larger segments.

        Returns:
            tuple[np.ndarray, int]: (H, W) int32 labels, numbered in the order of their first pixels; number of
            segments.
        """
        height, width = self.shape
        parents, rejected = join(self.weights, self.edges, height * width, width, np.float32(k))
        joined, settled = join_small(parents.copy(), self.weights, self.edges, rejected, width, MIN_SIZE)
        if not settled:
            weights, edges = self._edges_in_opencv_order()
            all_edges = np.arange(len(edges), dtype=np.int32)
            joined, _ = join_small(parents, weights, edges, all_edges, width, MIN_SIZE)
        labels, count = number(joined)
        return labels.reshape(height, width), count

    def _edges_in_opencv_order(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (E,) float32 weights and (E,) int32 edges, each from both ends, with ties in OpenCV's order."""
        if self._exact_edges is None:
            packed = edges_from_both_ends(self.smooth)
            std_sort(packed)
            weights = (packed >> 32).astype(np.int32).view(np.float32)
            self._exact_edges = weights, (packed & 0xFFFFFFFF).astype(np.int32)
        return self._exact_edges


@kernel()
def _weight(smooth: np.ndarray, y: int, x: int, y2: int, x2: int) -> np.float32:
    """Computes the Euclidean distance of two pixels in float32, summed from the first channel to the last."""
    total = np.float32(0)
    for channel in range(smooth.shape[2]):
        difference = smooth[y, x, channel] - smooth[y2, x2, channel]
        total += difference * difference
    return np.sqrt(total)


@kernel('Tuple((float32[::1], int32[::1]))(float32[:, :, ::1])')
def edge_weights(smooth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes the weights of the edges to the right (code 2 * pixel) and down (code 2 * pixel + 1).

    Args:
        smooth (np.ndarray): (H, W, C) float32.

    Returns:
        tuple[np.ndarray, np.ndarray]: (E,) float32 weights, (E,) int32 codes.
    """
    height, width, _ = smooth.shape
    count = height * (width - 1) + (height - 1) * width
    weights, edges = np.empty(count, np.float32), np.empty(count, np.int32)
    e = 0
    for y in range(height):
        for x in range(width):
            if x + 1 < width:
                weights[e], edges[e] = _weight(smooth, y, x, y, x + 1), 2 * (y * width + x)
                e += 1
            if y + 1 < height:
                weights[e], edges[e] = _weight(smooth, y, x, y + 1, x), 2 * (y * width + x) + 1
                e += 1
    return weights, edges


@kernel('int64[::1](float32[:, :, ::1])')
def edges_from_both_ends(smooth: np.ndarray) -> np.ndarray:
    """Lists the edges in OpenCV's order: for each pixel up, left, down, right.

    Args:
        smooth (np.ndarray): (H, W, C) float32.

    Returns:
        np.ndarray: (E,) int64: the bits of the weight in the upper half, the code of :func:`edge_weights` in the lower.
    """
    height, width, _ = smooth.shape
    packed = np.empty(2 * (height * (width - 1) + (height - 1) * width), np.int64)
    weight = np.empty(1, np.float32)
    bits = weight.view(np.int32)
    e = 0
    for y in range(height):
        for x in range(width):
            p = y * width + x
            for y2, x2, code in (
                (y - 1, x, 2 * (p - width) + 1),
                (y, x - 1, 2 * (p - 1)),
                (y + 1, x, 2 * p + 1),
                (y, x + 1, 2 * p),
            ):
                if 0 <= y2 < height and 0 <= x2 < width:
                    weight[0] = _weight(smooth, y, x, y2, x2)
                    packed[e] = (np.int64(bits[0]) << 32) | code
                    e += 1
    return packed


@kernel('Tuple((float32[::1], int32[::1]))(float32[::1], int32[::1])')
def sort_edges(weights: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorts edges by weight with a radix sort of the weights' bits, whose order is that of nonnegative floats.

    Args:
        weights (np.ndarray): (E,) float32, nonnegative; overwritten.
        edges (np.ndarray): (E,) int32; overwritten.

    Returns:
        tuple[np.ndarray, np.ndarray]: Both in ascending order of weight.
    """
    count = len(weights)
    keys, other_keys = weights.view(np.uint32), np.empty(count, np.uint32)
    other_edges = np.empty(count, np.int32)
    starts = np.zeros((3, 2048), np.int64)
    for key in keys:
        starts[0, key & 2047] += 1
        starts[1, (key >> 11) & 2047] += 1
        starts[2, key >> 22] += 1
    for digit in range(3):
        total = 0
        for value in range(2048):
            total, starts[digit, value] = total + starts[digit, value], total
    for digit in range(3):
        shift = 11 * digit
        for e in range(count):
            value = (keys[e] >> shift) & 2047
            position = starts[digit, value]
            starts[digit, value] = position + 1
            other_keys[position] = keys[e]
            other_edges[position] = edges[e]
        keys, other_keys = other_keys, keys
        edges, other_edges = other_edges, edges
    return keys.view(np.float32), edges


@kernel()
def _find(parents: np.ndarray, p: int) -> int:
    """Finds the root of p. The entry of a root is minus the size of its tree."""
    while parents[p] >= 0:
        parent = parents[p]
        grandparent = parents[parent]
        if grandparent < 0:
            return parent
        parents[p] = grandparent  # path halving
        p = grandparent
    return p


@kernel()
def _ends(code: int, width: int) -> tuple[int, int]:
    """Returns the two pixels of an edge."""
    p = code >> 1
    return p, p + (width if code & 1 else 1)


@kernel()
def _union(parents: np.ndarray, a: int, b: int) -> int:
    """Joins the trees of two roots and returns the new root."""
    if parents[a] > parents[b]:  # a is smaller
        a, b = b, a
    parents[a] += parents[b]
    parents[b] = a
    return a


@kernel('Tuple((int32[::1], int32[::1]))(float32[::1], int32[::1], int64, int64, float32)')
def join(weights: np.ndarray, edges: np.ndarray, count: int, width: int, k: float) -> tuple[np.ndarray, np.ndarray]:
    """First pass: joins pixels along the edges that the thresholds allow.

    Args:
        weights (np.ndarray): (E,) float32, ascending.
        edges (np.ndarray): (E,) int32 codes.
        count (int): Number of pixels.
        width (int): Width of the image.
        k (float): Scale of the thresholds.

    Returns:
        tuple[np.ndarray, np.ndarray]: (count,) int32 forest, see :func:`_find`; (n,) int32 indices of the rejected
        edges, ascending. No other edge connects two components.
    """
    parents = np.full(count, -1, np.int32)
    thresholds = np.full(count, k, np.float32)
    rejected = np.empty(len(edges), np.int32)
    num_rejected = 0
    for e in range(len(edges)):
        p, q = _ends(edges[e], width)
        if parents[p] == parents[q] and parents[p] >= 0:  # most edges inside a component
            continue
        a, b = _find(parents, p), _find(parents, q)
        if a != b:
            weight = weights[e]
            if weight <= thresholds[a] and weight <= thresholds[b]:
                a = _union(parents, a, b)
                thresholds[a] = weight + k / np.float32(-parents[a])
            else:
                rejected[num_rejected] = e
                num_rejected += 1
        if p != a:
            parents[p] = a
        if q != a and parents[q] >= 0:
            parents[q] = _find(parents, q)
    return parents, rejected[:num_rejected].copy()


@kernel('Tuple((int32[::1], boolean))(int32[::1], float32[::1], int32[::1], int32[::1], int64, int64)')
def join_small(
    parents: np.ndarray, weights: np.ndarray, edges: np.ndarray, chosen: np.ndarray, width: int, min_size: int
) -> tuple[np.ndarray, bool]:
    """Second pass: joins every component of less than ``min_size`` pixels to a neighbor.

    Args:
        parents (np.ndarray): (P,) int32 forest; modified.
        weights (np.ndarray): (E,) float32, ascending.
        edges (np.ndarray): (E,) int32 codes.
        chosen (np.ndarray): (n,) int32 indices of the edges to process, ascending.
        width (int): Width of the image.
        min_size (int): Smallest size of a component in pixels.

    Returns:
        tuple[np.ndarray, bool]: The forest, and whether every order of equal weights gives the same forest.
    """
    largest = np.zeros(len(parents), np.int32)  # by root: size of its largest part at this weight
    active = np.empty(len(chosen), np.int32)
    settled = True
    begin = 0
    while begin < len(chosen):
        weight = weights[chosen[begin]]
        end, num_active = begin, 0
        while end < len(chosen) and weights[chosen[end]] == weight:
            p, q = _ends(edges[chosen[end]], width)
            a, b = _find(parents, p), _find(parents, q)
            if a != b and (-parents[a] < min_size or -parents[b] < min_size):
                largest[a], largest[b] = -parents[a], -parents[b]
                active[num_active] = end
                num_active += 1
            end += 1
        for i in active[:num_active]:
            p, q = _ends(edges[chosen[i]], width)
            a, b = _find(parents, p), _find(parents, q)
            if a != b and (-parents[a] < min_size or -parents[b] < min_size):
                most = max(largest[a], largest[b])
                largest[_union(parents, a, b)] = most
        if num_active > 1:
            for i in active[:num_active]:
                p, q = _ends(edges[chosen[i]], width)
                a, b = _find(parents, p), _find(parents, q)
                # If its parts without the largest are smaller than min_size together, every order joins them.
                settled = settled and a == b and -parents[a] - largest[a] < min_size
        begin = end
    return parents, settled


@kernel('Tuple((int32[::1], int64))(int32[::1])')
def number(parents: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers the components in the order of their first pixels.

    Args:
        parents (np.ndarray): (P,) int32 forest; modified.

    Returns:
        tuple[np.ndarray, int]: (P,) int32 labels; number of components.
    """
    label_by_root = np.full(len(parents), -1, np.int32)
    labels = np.empty(len(parents), np.int32)
    count = 0
    for p in range(len(parents)):
        root = _find(parents, p)
        if label_by_root[root] < 0:
            label_by_root[root] = count
            count += 1
        labels[p] = label_by_root[root]
    return labels, count
