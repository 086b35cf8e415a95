"""Graph-based segmentation (Felzenszwalb and Huttenlocher, IJCV 2004), as OpenCV's ``GraphSegmentation`` does it.

Pixels are joined along the edges of the 4-neighbour grid, lightest first. An edge joins two components if it weighs no
more than either's threshold, which is the weight of its last join plus k over its size. What remains smaller than
``MIN_SIZE`` is then joined to a neighbour along the lightest edge.

Two facts make this cheaper than OpenCV's. The first pass does not depend on the order of equal weights: components
whose threshold is w or more are joined wherever an edge of weight w links them, since a join at w leaves the threshold
at w or above, and the others never join again. So any sort will do, here one of the weights' bits, and each edge is
needed once, where OpenCV sorts it from both ends. And the sort is the same for every k.

The second pass does depend on that order. It tells when it did, and is then repeated in the order that OpenCV's sort
gives (:func:`~.grouping.std_sort`).
"""

import cv2
import numpy as np

from ccop_mm.proposals.selective_search.grouping import std_sort
from ccop_mm.proposals.selective_search.jit import kernel

#: OpenCV's defaults: switchToSelectiveSearchFast's sigma, a C++ float, and GraphSegmentation's min_size.
SIGMA = float(np.float32(0.8))
MIN_SIZE = 100


class Graph:
    """The sorted edges of one image; segments it for any k.

    Args:
        image (np.ndarray): (H, W) or (H, W, C) uint8.
    """

    def __init__(self, image):
        smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), SIGMA, None, SIGMA)
        self.shape = image.shape[:2]
        self.smooth = smooth.reshape(*self.shape, -1)
        weights, edges = edge_weights(self.smooth)
        self.weights, self.edges = sort_edges(weights, edges)
        self._exact_edges = None

    def segment(self, k):
        """Labels each pixel with its segment.

        Args:
            k (float): The larger, the larger the segments.

        Returns:
            tuple[np.ndarray, int]: (H, W) int32 labels, counted up in the order of their first pixels; their number.
        """
        height, width = self.shape
        parents, refused = join(self.weights, self.edges, height * width, width, np.float32(k))
        joined, settled = join_small(parents.copy(), self.weights, self.edges, refused, width, MIN_SIZE)
        if not settled:
            weights, edges = self._edges_in_opencv_order()
            every = np.arange(len(edges), dtype=np.int32)
            joined, _ = join_small(parents, weights, edges, every, width, MIN_SIZE)
        labels, count = number(joined)
        return labels.reshape(height, width), count

    def _edges_in_opencv_order(self):
        """(E,) float32 weights and (E,) int32 edges, each from both ends, equals as OpenCV's sort leaves them."""
        if self._exact_edges is None:
            packed = edges_from_both_ends(self.smooth)
            std_sort(packed)
            weights = (packed >> 32).astype(np.int32).view(np.float32)
            self._exact_edges = weights, (packed & 0xFFFFFFFF).astype(np.int32)
        return self._exact_edges


@kernel()
def _weight(smooth, y, x, y2, x2):
    """Euclidean distance of two pixels, in float32 throughout, summed from the first channel to the last."""
    total = np.float32(0)
    for channel in range(smooth.shape[2]):
        difference = smooth[y, x, channel] - smooth[y2, x2, channel]
        total += difference * difference
    return np.sqrt(total)


@kernel('Tuple((float32[::1], int32[::1]))(float32[:, :, ::1])')
def edge_weights(smooth):
    """Weighs the edges to the right (code 2 * pixel) and down (2 * pixel + 1).

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
def edges_from_both_ends(smooth):
    """The edges in the order in which OpenCV lists them: of each pixel up, left, down, right.

    Args:
        smooth (np.ndarray): (H, W, C) float32.

    Returns:
        np.ndarray: (E,) int64, the bits of the weight above 32 bits of code, the one of :func:`edge_weights`.
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
def sort_edges(weights, edges):
    """Sorts edges by weight: a radix sort of the weights' bits, which order as the weights do, for none is negative.

    Args:
        weights (np.ndarray): (E,) float32, 0 or more; overwritten.
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
            place = starts[digit, value]
            starts[digit, value] = place + 1
            other_keys[place] = keys[e]
            other_edges[place] = edges[e]
        keys, other_keys = other_keys, keys
        edges, other_edges = other_edges, edges
    return keys.view(np.float32), edges


@kernel()
def _find(parents, p):
    """Root of p; a root holds minus its size."""
    while parents[p] >= 0:
        parent = parents[p]
        grandparent = parents[parent]
        if grandparent < 0:
            return parent
        parents[p] = grandparent  # halves the path for the next search
        p = grandparent
    return p


@kernel()
def _ends(code, width):
    """The two pixels of an edge."""
    p = code >> 1
    return p, p + (width if code & 1 else 1)


@kernel()
def _union(parents, a, b):
    """Joins the trees of two roots; gives the new root."""
    if parents[a] > parents[b]:  # a is smaller
        a, b = b, a
    parents[a] += parents[b]
    parents[b] = a
    return a


@kernel('Tuple((int32[::1], int32[::1]))(float32[::1], int32[::1], int64, int64, float32)')
def join(weights, edges, count, width, k):
    """First pass: joins pixels along the edges that the thresholds let through.

    Args:
        weights (np.ndarray): (E,) float32, ascending.
        edges (np.ndarray): (E,) int32 codes.
        count (int): Pixels.
        width (int): Pixels of a row.
        k (float): Of the thresholds.

    Returns:
        tuple[np.ndarray, np.ndarray]: (count,) int32 forest, see :func:`_find`; (n,) int32 indices of the edges that
        were refused, ascending. No other edge links two components.
    """
    parents = np.full(count, -1, np.int32)
    thresholds = np.full(count, k, np.float32)
    refused = np.empty(len(edges), np.int32)
    num_refused = 0
    for e in range(len(edges)):
        p, q = _ends(edges[e], width)
        if parents[p] == parents[q] and parents[p] >= 0:  # true of most edges that are inside of a component
            continue
        a, b = _find(parents, p), _find(parents, q)
        if a != b:
            weight = weights[e]
            if weight <= thresholds[a] and weight <= thresholds[b]:
                a = _union(parents, a, b)
                thresholds[a] = weight + k / np.float32(-parents[a])
            else:
                refused[num_refused] = e
                num_refused += 1
        if p != a:
            parents[p] = a
        if q != a and parents[q] >= 0:
            parents[q] = _find(parents, q)
    return parents, refused[:num_refused].copy()


@kernel('Tuple((int32[::1], boolean))(int32[::1], float32[::1], int32[::1], int32[::1], int64, int64)')
def join_small(parents, weights, edges, chosen, width, min_size):
    """Second pass: joins every component of less than ``min_size`` pixels to a neighbour.

    Args:
        parents (np.ndarray): (P,) int32 forest; changed.
        weights (np.ndarray): (E,) float32, ascending.
        edges (np.ndarray): (E,) int32 codes.
        chosen (np.ndarray): (n,) int32 indices of edges to go through, ascending.
        width (int): Pixels of a row.
        min_size (int): In pixels.

    Returns:
        tuple[np.ndarray, bool]: The forest, and whether any other order of equal weights gives the same one.
    """
    largest = np.zeros(len(parents), np.int32)  # of a root: pixels of the largest part that it had at this weight
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
                # If all its parts but the largest are small together, any order joins them.
                settled = settled and a == b and -parents[a] - largest[a] < min_size
        begin = end
    return parents, settled


@kernel('Tuple((int32[::1], int64))(int32[::1])')
def number(parents):
    """Numbers the components in the order of their first pixels.

    Args:
        parents (np.ndarray): (P,) int32 forest; changed.

    Returns:
        tuple[np.ndarray, int]: (P,) int32 labels, and how many there are.
    """
    of_root = np.full(len(parents), -1, np.int32)
    labels = np.empty(len(parents), np.int32)
    count = 0
    for p in range(len(parents)):
        root = _find(parents, p)
        if of_root[root] < 0:
            of_root[root] = count
            count += 1
        labels[p] = of_root[root]
    return labels, count
