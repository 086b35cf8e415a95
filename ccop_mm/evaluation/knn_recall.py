"""Object kNN recall: the fraction of nearest neighbors that share an object's class (paper, Table 9)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ccop_mm.utils.errors import InputError

#: Numbers of neighbors in Table 9.
DEFAULT_KS = (1, 5, 10, 20, 50, 100)


def knn_recall(
    features: Tensor, labels: Tensor, ks: tuple[int, ...] = DEFAULT_KS, chunk_size: int = 512
) -> dict[int, float]:
    """Computes the fraction of each object's k nearest neighbors that share its class, averaged over objects.

    Neighbors are ranked by cosine similarity and exclude the object itself. Objects tied at the k-th similarity share
    the remaining places equally, which equals the mean over all orders of the tied objects. The result therefore does
    not depend on the order of the rows, and constant features score exactly :func:`chance_recall`. A feature of norm
    zero has similarity 0 to every object.

    Args:
        features (Tensor): ``(N, D)`` with N >= 2. float64 is computed in float64, every other type in float32.
        labels (Tensor): ``(N,)`` integer class of each object, on any device.
        ks (tuple[int, ...]): Numbers of neighbors, each at least 1. Values above N - 1 are omitted from the result.
        chunk_size (int): Number of objects compared with all others at a time. Memory is about
            10 bytes x chunk_size x N.

    Returns:
        dict[int, float]: k -> recall in [0, 1], in the order of ``ks``.

    Raises:
        InputError: There are fewer than two objects, or a feature is not finite.
        ValueError: The shapes do not match, or a k is below 1.
    """
    labels = _check_labels(labels).to(features.device)
    if features.ndim != 2 or len(features) != len(labels):
        raise ValueError(f'features {tuple(features.shape)} must be (N, D) and labels {tuple(labels.shape)} (N,)')
    if min(ks, default=1) < 1:
        raise ValueError(f'every k must be at least 1, got {ks}')
    num_non_finite = int((~features.isfinite().all(dim=1)).sum())
    if num_non_finite:
        raise InputError(
            f'kNN recall: {num_non_finite} of {len(features)} features are non-finite; use an earlier checkpoint'
        )
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
    """Computes the expected recall of random neighbors, which is the same for every k.

    It is the mean over objects of (n_c - 1) / (N - 1), where n_c is the size of the object's class.

    Args:
        labels (Tensor): ``(N,)`` integer class of each object, with N >= 2.

    Raises:
        InputError: There are fewer than two objects.
    """
    counts = _check_labels(labels).unique(return_counts=True)[1].double()
    total = counts.sum()
    return (counts * (counts - 1) / total / (total - 1)).sum().item()


def _check_labels(labels: Tensor) -> Tensor:
    if len(labels) < 2:
        raise InputError(f'kNN recall needs at least two objects, got {len(labels)}')
    return labels


def _count_hits(similarity: Tensor, row_labels: Tensor, labels: Tensor, ks: tuple[int, ...]) -> Tensor:
    """Counts the same-class neighbors among the k most similar, summed over rows.

    Args:
        similarity (Tensor): ``(M, N)``; an object's similarity with itself is -inf.
        row_labels (Tensor): ``(M,)`` classes of the rows.
        labels (Tensor): ``(N,)`` classes of the columns.
        ks (tuple[int, ...]): Numbers of neighbors, each below N.

    Returns:
        Tensor: ``(len(ks),)`` float64.
    """
    # One more than the largest k shows which rows have ties that extend beyond it. Only those rows need all columns.
    nearest = similarity.topk(max(ks) + 1, dim=1)
    thresholds = nearest.values[:, [k - 1 for k in ks]]
    same = labels[nearest.indices] == row_labels[:, None]
    complete = nearest.values[:, -1] < nearest.values[:, -2]
    hits = _expected_hits(nearest.values[complete], same[complete], thresholds[complete], ks)
    if not complete.all():
        same = row_labels[~complete, None] == labels
        hits += _expected_hits(similarity[~complete], same, thresholds[~complete], ks)
    return hits


def _expected_hits(similarity: Tensor, same: Tensor, thresholds: Tensor, ks: tuple[int, ...]) -> Tensor:
    """Computes the expected number of same-class neighbors under random tie-breaking, summed over rows.

    Args:
        similarity (Tensor): ``(M, N)``; contains every column that reaches the row's lowest threshold.
        same (Tensor): ``(M, N)`` bool; whether row and column have the same class.
        thresholds (Tensor): ``(M, len(ks))``; the k-th highest similarity of each row.
        ks (tuple[int, ...]): Numbers of neighbors.

    Returns:
        Tensor: ``(len(ks),)`` float64.
    """
    hits = []
    for k, threshold in zip(ks, thresholds.split(1, dim=1), strict=True):
        nearer, tied = similarity > threshold, similarity == threshold
        places = k - nearer.sum(dim=1)
        same_fraction = (tied & same).sum(dim=1).double() / tied.sum(dim=1)
        hits.append(((nearer & same).sum(dim=1) + places * same_fraction).sum())
    return torch.stack(hits)
