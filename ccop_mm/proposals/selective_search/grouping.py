"""Hierarchical grouping (Uijlings et al., IJCV 2013, Algorithm 1): repeatedly merges the two most similar neighbors.

OpenCV keeps the similarities in a list that it sorts at each merge. Here they are in a heap, and neighbors are in
linked lists that a merge concatenates, so that the cost of a merge is proportional to the number of neighbors.

Which of several *equal* highest similarities OpenCV selects depends on how std::sort, which is not stable, permuted
them at all previous merges. :func:`group` stops where that may matter, and :func:`group_exactly` then reproduces OpenCV
with the sort of the GNU C++ library, with which OpenCV's Linux wheels are built.

Similarities are float32 sums, which depend on the order of their terms. Each is rounded where OpenCV rounds it, because
the last bit can determine which of two pairs is merged first.
"""

import heapq
from typing import Any

import numpy as np

from ccop_mm.proposals.selective_search.jit import kernel

#: Types of the arguments of :func:`group` and :func:`group_exactly`.
_ARGUMENTS = 'int32[:, ::1], int32[:, ::1], int32[::1], float32[:, ::1], float32[:, ::1], float32[::1], int64'


@kernel()
def _intersection(histograms: np.ndarray, a: int, b: int) -> np.float32:
    """Computes the histogram intersection, summed from the first bin to the last."""
    total = np.float32(0)
    for i in range(histograms.shape[1]):
        total += min(histograms[a, i], histograms[b, i])
    return total


@kernel()
def _similarity(
    boxes: np.ndarray,
    sizes: np.ndarray,
    colors: np.ndarray,
    textures: np.ndarray,
    weights: np.ndarray,
    area: int,
    a: int,
    b: int,
) -> np.float32:
    """Computes the weighted mean of the similarities of Uijlings et al. (Eq. 1-4) that have a nonzero weight."""
    total, norm, one = np.float32(0), np.float32(0), np.float32(1)
    if weights[0] > 0:
        total += weights[0] * _intersection(colors, a, b)
    if weights[1] > 0:
        width = max(boxes[a, 2], boxes[b, 2]) - min(boxes[a, 0], boxes[b, 0])
        height = max(boxes[a, 3], boxes[b, 3]) - min(boxes[a, 1], boxes[b, 1])
        empty = np.float32(width * height - sizes[a] - sizes[b])
        total += weights[1] * max(min(one - empty / np.float32(area), one), np.float32(0))
    if weights[2] > 0:
        total += weights[2] * _intersection(textures, a, b)
    if weights[3] > 0:
        total += weights[3] * max(min(one - np.float32(sizes[a] + sizes[b]) / np.float32(area), one), np.float32(0))
    for weight in weights:
        norm += weight
    return total / norm


@kernel()
def _average_histograms(histograms: np.ndarray, sizes: np.ndarray, a: int, b: int) -> None:
    """Replaces the histogram of a by the size-weighted mean of those of a and b."""
    size_a, size_b, size = np.float32(sizes[a]), np.float32(sizes[b]), np.float32(sizes[a] + sizes[b])
    for i in range(histograms.shape[1]):
        histograms[a, i] = (histograms[a, i] * size_a + histograms[b, i] * size_b) / size


@kernel()
def _merge(
    boxes: np.ndarray,
    sizes: np.ndarray,
    colors: np.ndarray,
    textures: np.ndarray,
    weights: np.ndarray,
    a: int,
    b: int,
) -> None:
    """Replaces region a by the union of a and b."""
    if weights[0] > 0:
        _average_histograms(colors, sizes, a, b)
    if weights[2] > 0:
        _average_histograms(textures, sizes, a, b)
    boxes[a, 0], boxes[a, 1] = min(boxes[a, 0], boxes[b, 0]), min(boxes[a, 1], boxes[b, 1])
    boxes[a, 2], boxes[a, 3] = max(boxes[a, 2], boxes[b, 2]), max(boxes[a, 3], boxes[b, 3])
    sizes[a] += sizes[b]


@kernel()
def _median_first(keys: np.ndarray, target: int, a: int, b: int, c: int) -> None:
    """Swaps the median of the keys at three positions into the position ``target``."""
    if keys[a] >> 32 < keys[b] >> 32:
        if keys[b] >> 32 < keys[c] >> 32:
            median = b
        elif keys[a] >> 32 < keys[c] >> 32:
            median = c
        else:
            median = a
    elif keys[a] >> 32 < keys[c] >> 32:
        median = a
    elif keys[b] >> 32 < keys[c] >> 32:
        median = c
    else:
        median = b
    keys[target], keys[median] = keys[median], keys[target]


@kernel()
def _partition(keys: np.ndarray, begin: int, end: int) -> int:
    """Applies Hoare's partition around ``keys[begin - 1]``, stopping at equal keys; returns the cut."""
    pivot = keys[begin - 1] >> 32
    while True:
        while keys[begin] >> 32 < pivot:
            begin += 1
        end -= 1
        while pivot < keys[end] >> 32:
            end -= 1
        if begin >= end:
            return begin
        keys[begin], keys[end] = keys[end], keys[begin]
        begin += 1


@kernel()
def _heap_adjust(keys: np.ndarray, begin: int, hole: int, count: int, value: int) -> None:
    """Moves the hole down to a leaf along the larger children, then the value up from there."""
    top, child = hole, hole
    while child < (count - 1) // 2:
        child = 2 * (child + 1)
        if keys[begin + child] >> 32 < keys[begin + child - 1] >> 32:
            child -= 1
        keys[begin + hole] = keys[begin + child]
        hole = child
    if count & 1 == 0 and child == (count - 2) // 2:
        child = 2 * child + 1
        keys[begin + hole] = keys[begin + child]
        hole = child
    parent = (hole - 1) // 2
    while hole > top and keys[begin + parent] >> 32 < value >> 32:
        keys[begin + hole] = keys[begin + parent]
        hole = parent
        parent = (hole - 1) // 2
    keys[begin + hole] = value


@kernel()
def _heap_sort(keys: np.ndarray, begin: int, end: int) -> None:
    """Sorts a range of keys as ``std::partial_sort`` does for the whole range."""
    count = end - begin
    for hole in range((count - 2) // 2, -1, -1):
        _heap_adjust(keys, begin, hole, count, keys[begin + hole])
    while count > 1:
        count -= 1
        value = keys[begin + count]
        keys[begin + count] = keys[begin]
        _heap_adjust(keys, begin, 0, count, value)


@kernel('void(int64[::1])')
def std_sort(keys: np.ndarray) -> None:
    """Sorts by the upper 32 bits, with equal keys in the order in which std::sort of the GNU C++ library leaves them.

    The algorithm is introsort (Musser 1997): quicksort around the median of the second, the middle and the last element
    down to runs of 16, heap sort at a depth of 2 log2(n), and one final insertion sort.

    Args:
        keys (np.ndarray): (n,) int64, sorted in place; the upper halves are nonnegative.
    """
    count = len(keys)
    depth, rest = 0, count
    while rest > 1:
        depth, rest = depth + 2, rest >> 1
    todo = [(0, count, depth)]
    while todo:
        begin, end, depth = todo.pop()
        while end - begin > 16:
            if depth == 0:
                _heap_sort(keys, begin, end)
                break
            depth -= 1
            _median_first(keys, begin, begin + 1, begin + (end - begin) // 2, end - 1)
            cut = _partition(keys, begin + 1, end)
            todo.append((cut, end, depth))  # the parts are independent, so their order does not matter
            end = cut
    for i in range(1, count):
        value = keys[i]
        j = i
        while j > 0 and value >> 32 < keys[j - 1] >> 32:
            keys[j] = keys[j - 1]
            j -= 1
        keys[j] = value


@kernel()
def _stale(alive: np.ndarray, entry: tuple[np.float32, int, int]) -> bool:
    """Returns whether a region of this pair has been merged since."""
    return not (alive[entry[1]] and alive[entry[2]])


@kernel(f'Tuple((int32[:, ::1], boolean))({_ARGUMENTS})')
def group(
    pairs: np.ndarray,
    boxes: np.ndarray,
    sizes: np.ndarray,
    colors: np.ndarray,
    textures: np.ndarray,
    weights: np.ndarray,
    area: int,
) -> tuple[np.ndarray, bool]:
    """Merges the two most similar neighbors until no neighbors are left or the two best pairs are equally similar.

    Args:
        pairs (np.ndarray): (E, 2) int32 neighbors i < j, distinct and ascending.
        boxes (np.ndarray): (V, 4) int32 xyxy, x2 and y2 exclusive; modified, like the next three arguments.
        sizes (np.ndarray): (V,) int32 sizes of the regions in pixels.
        colors (np.ndarray): (V, B) float32 histograms; may be empty if their weight is 0.
        textures (np.ndarray): (V, C) float32 histograms; may be empty if their weight is 0.
        weights (np.ndarray): (4,) float32 weights of color, fill, texture and size; 0 disables a similarity.
        area (int): Size of the image in pixels.

    Returns:
        tuple[np.ndarray, bool]: (n, 4) int32 boxes of the merged regions; True if grouping finished, False if it
        stopped at a tie.
    """
    count, num_pairs = len(sizes), len(pairs)
    merged = np.empty((max(count - 1, 0), 4), np.int32)
    num_merged = 0
    # A region has a slot, which it inherits from its first part, and an id, which is new after each merge.
    alive = np.zeros(2 * count, np.bool_)
    alive[:count] = True
    slot_of, id_of, parents = np.arange(2 * count), np.arange(count), np.arange(count)
    # Neighbors of a slot: a linked list of slots; `parents` leads to the current slot of those merged since.
    head, tail = np.full(count, -1), np.full(count, -1)
    following, neighbor = np.full(2 * num_pairs, -1), np.empty(2 * num_pairs, np.int64)
    heap: list[Any] = [(np.float32(0), np.int64(0), np.int64(0)) for _ in range(0)]  # empty, gives numba the type
    for e in range(num_pairs):
        a, b = np.int64(pairs[e, 0]), np.int64(pairs[e, 1])
        heap.append((-_similarity(boxes, sizes, colors, textures, weights, area, a, b), a, b))
        for node, this, other in ((2 * e, a, b), (2 * e + 1, b, a)):
            neighbor[node] = other
            if head[this] < 0:
                head[this] = node
            else:
                following[tail[this]] = node
            tail[this] = node
    heapq.heapify(heap)
    met = np.full(count, -1)
    while heap:
        entry = heapq.heappop(heap)
        if _stale(alive, entry):
            continue
        while heap and _stale(alive, heap[0]):
            heapq.heappop(heap)
        if heap and heap[0][0] == entry[0]:
            return merged[:num_merged].copy(), False
        a, b = slot_of[entry[1]], slot_of[entry[2]]
        a, b = min(a, b), max(a, b)
        _merge(boxes, sizes, colors, textures, weights, a, b)
        merged[num_merged] = boxes[a]
        alive[entry[1]] = alive[entry[2]] = False
        region = count + num_merged
        alive[region], slot_of[region], id_of[a], parents[b] = True, a, region, a
        num_merged += 1
        # Visits the neighbors of both regions, each once.
        following[tail[a]], tail[a] = head[b], tail[b]
        node, last = head[a], -1
        while node >= 0:
            other = neighbor[node]
            while parents[other] != other:
                parents[other] = parents[parents[other]]
                other = parents[other]
            if other != a and met[other] != region:
                met[other] = region
                neighbor[node] = other
                if last < 0:
                    head[a] = node
                else:
                    following[last] = node
                last = node
                similarity = _similarity(boxes, sizes, colors, textures, weights, area, a, other)
                heapq.heappush(heap, (-similarity, region, id_of[other]))
            node = following[node]
        if last < 0:
            head[a] = -1
        else:
            following[last] = -1
        tail[a] = last
        # At most num_pairs entries are not stale, so this bounds the memory and the height of the heap.
        if len(heap) > 2 * num_pairs + 64:
            heap = [entry for entry in heap if not _stale(alive, entry)]
            heapq.heapify(heap)
    return merged[:num_merged].copy(), True


@kernel(f'int32[:, ::1]({_ARGUMENTS})')
def group_exactly(
    pairs: np.ndarray,
    boxes: np.ndarray,
    sizes: np.ndarray,
    colors: np.ndarray,
    textures: np.ndarray,
    weights: np.ndarray,
    area: int,
) -> np.ndarray:
    """Groups as :func:`group` does, but breaks ties as OpenCV's repeated sorting does; slower.

    Args: See :func:`group`.

    Returns:
        np.ndarray: (n, 4) int32 boxes of the merged regions.
    """
    count, num_pairs = len(sizes), len(pairs)
    merged = np.empty((max(count - 1, 0), 4), np.int32)
    num_merged = 0
    slot_of = np.arange(2 * count)
    # The list of pairs: bits of the similarity in the upper half, index of the pair in the lower.
    listed = np.empty(num_pairs, np.int64)
    regions = np.empty((num_pairs, 2), np.int64)
    similarity = np.empty(1, np.float32)
    bits = similarity.view(np.int32)
    for e in range(num_pairs):
        regions[e, 0], regions[e, 1] = pairs[e, 0], pairs[e, 1]
        similarity[0] = _similarity(boxes, sizes, colors, textures, weights, area, regions[e, 0], regions[e, 1])
        listed[e] = (np.int64(bits[0]) << 32) | e
    num_listed = num_pairs
    met = np.full(2 * count, -1)
    free, others = np.empty(num_pairs, np.int64), np.empty(num_pairs, np.int64)
    while num_listed:
        std_sort(listed[:num_listed])
        num_listed -= 1
        free[0] = listed[num_listed] & 0xFFFFFFFF
        num_free = 1
        first, second = regions[free[0], 0], regions[free[0], 1]
        a, b = min(slot_of[first], slot_of[second]), max(slot_of[first], slot_of[second])
        _merge(boxes, sizes, colors, textures, weights, a, b)
        merged[num_merged] = boxes[a]
        region = count + num_merged
        slot_of[region] = a
        num_merged += 1
        # Removes the pairs of either region from the list, keeping its order, and collects their other regions.
        kept, num_others = 0, 0
        for i in range(num_listed):
            pair = listed[i] & 0xFFFFFFFF
            this, other = regions[pair, 0], regions[pair, 1]
            if other in (first, second):
                this, other = other, this
            if this in (first, second):
                if met[other] != region:
                    met[other] = region
                    others[num_others] = other
                    num_others += 1
                free[num_free] = pair
                num_free += 1
            else:
                listed[kept] = listed[i]
                kept += 1
        # Appends these as neighbors of the new region, under the indices of the removed pairs.
        for i in range(num_others):
            pair, other = free[i], others[i]
            regions[pair, 0], regions[pair, 1] = region, other
            similarity[0] = _similarity(boxes, sizes, colors, textures, weights, area, a, slot_of[other])
            listed[kept + i] = (np.int64(bits[0]) << 32) | pair
        num_listed = kept + num_others
    return merged[:num_merged].copy()
