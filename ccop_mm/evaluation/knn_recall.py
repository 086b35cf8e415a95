"""Object kNN recall: do objects of one class lie close together? (paper, Table 9)"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ccop_mm.errors import InputError

#: The neighborhood sizes of Table 9.
DEFAULT_KS = (1, 5, 10, 20, 50, 100)


def knn_recall(
    features: Tensor, labels: Tensor, ks: tuple[int, ...] = DEFAULT_KS, chunk_size: int = 512
) -> dict[int, float]:
    """The share of an object's k nearest neighbors that are of its class, averaged over objects (Table 9).

    Nearness is cosine similarity, the object itself left out. Where objects tie for the last places among the k, each
    counts for the same fraction of a place. That is the mean over all orders of the tied: the result does not depend on
    the order of the rows, and features that are all equal score :func:`chance_recall`, not what their order happens to
    give. A feature of norm zero has similarity 0 to every object.

    Args:
        features (Tensor): ``(N, D)``, N at least 2. float64 is computed in float64, every other type in float32.
        labels (Tensor): ``(N,)`` integer class of each object, on any device.
        ks (tuple[int, ...]): Numbers of neighbors, each at least 1. Those above N - 1 are left out of the result, for a
            recall over fewer neighbors would not be comparable.
        chunk_size (int): Objects compared with all others at a time; memory is about 10 bytes x chunk_size x N.

    Returns:
        dict[int, float]: Recall in [0, 1] for each k, in the order of ``ks``.

    Raises:
        InputError: If there are fewer than two objects, or a feature is not finite.
        ValueError: If the shapes do not belong together, or a k is below 1.
    """
    labels = _checked_labels(labels).to(features.device)
    if features.ndim != 2 or len(features) != len(labels):
        raise ValueError(f'features {tuple(features.shape)} and labels {tuple(labels.shape)} do not belong together')
    if min(ks, default=1) < 1:
        raise ValueError(f'ks must be at least 1, got {ks}')
    broken = int((~features.isfinite().all(dim=1)).sum())
    if broken:
        raise InputError(f'kNN recall: {broken} of {len(features)} features are not finite')
    ks = tuple(k for k in ks if k < len(features))
    if not ks:
        return {}
    features = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)
    hits = features.new_zeros(len(ks), dtype=torch.float64)
    for start in range(0, len(features), chunk_size):
        rows = torch.arange(start, min(start + chunk_size, len(features)), device=features.device)
        similarity = features[rows] @ features.T  # (chunk, N)
        similarity[rows - start, rows] = -torch.inf
        hits += _count_hits(similarity, labels[rows], labels, ks)
    return {k: (hit / k / len(features)).item() for k, hit in zip(ks, hits, strict=True)}


def chance_recall(labels: Tensor) -> float:
    """The recall that random neighbors have on average, for every k: the mean over objects of (n_c - 1) / (N - 1).

    Args:
        labels (Tensor): ``(N,)`` integer class of each object, N at least 2; n_c is the size of an object's class.

    Raises:
        InputError: If there are fewer than two objects.
    """
    counts = _checked_labels(labels).unique(return_counts=True)[1].double()
    total = counts.sum()
    return (counts * (counts - 1) / total / (total - 1)).sum().item()


def _checked_labels(labels: Tensor) -> Tensor:
    if len(labels) < 2:
        raise InputError(f'kNN recall needs at least two objects, got {len(labels)}')
    return labels


def _count_hits(similarity: Tensor, row_labels: Tensor, labels: Tensor, ks: tuple[int, ...]) -> Tensor:
    """Same-class neighbors among the k most similar, summed over rows.

    Args:
        similarity (Tensor): ``(M, N)``.
        row_labels (Tensor): ``(M,)`` classes of the rows.
        labels (Tensor): ``(N,)`` classes of the columns.
        ks (tuple[int, ...]): The k, each below N.

    Returns:
        Tensor: ``(len(ks),)`` float64.
    """
    # One more than the largest k, to see which rows have ties that go on beyond it. Only those need all their columns.
    nearest = similarity.topk(max(ks) + 1, dim=1)
    thresholds = nearest.values[:, [k - 1 for k in ks]]
    same = labels[nearest.indices] == row_labels[:, None]
    closed = nearest.values[:, -1] < nearest.values[:, -2]
    hits = _expected_hits(nearest.values[closed], same[closed], thresholds[closed], ks)
    if not closed.all():
        same = row_labels[~closed, None] == labels
        hits += _expected_hits(similarity[~closed], same, thresholds[~closed], ks)
    return hits


def _expected_hits(similarity: Tensor, same: Tensor, thresholds: Tensor, ks: tuple[int, ...]) -> Tensor:
    """As :func:`_count_hits`, if ties are broken at random.

    Args:
        similarity (Tensor): ``(M, N)``, of every column that reaches the row's lowest threshold.
        same (Tensor): ``(M, N)`` bool, whether row and column are of one class.
        thresholds (Tensor): ``(M, len(ks))``, the k-th highest similarity of each row.
        ks (tuple[int, ...]): The k.
    """
    hits = []
    for k, threshold in zip(ks, thresholds.split(1, dim=1), strict=True):
        nearer, tied = similarity > threshold, similarity == threshold
        places = k - nearer.sum(dim=1)
        share = (tied & same).sum(dim=1).double() / tied.sum(dim=1)
        hits.append(((nearer & same).sum(dim=1) + places * share).sum())
    return torch.stack(hits)
