"""The three losses of CCOP as functions of tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ccop_mm import boxes as box_ops


def info_nce(
    query: Tensor, keys: Tensor, queue: Tensor, temperature: float = 0.2, chunk_size: int | None = None
) -> Tensor:
    """Eq. 1 for each row: ``-log(exp(q.k / T) / (exp(q.k / T) + sum over the queue of exp(q.n / T)))``.

    Args:
        query (Tensor): ``(N, D)``, L2-normalized; N may be 0.
        keys (Tensor): ``(N, D)``, the positive of each row, L2-normalized.
        queue (Tensor): ``(D, K)``, the negatives, which all rows share.
        temperature (float): T; the paper uses 0.2.
        chunk_size (int, optional): Handle so many rows at a time and compute their logits again in backward: at most
            ``chunk_size x K`` logits exist at once, not ``N x K`` (0.8 GB in float32 for 256 photos of 12 objects).

    Returns:
        Tensor: ``(N,)`` losses.
    """
    if chunk_size is None or len(query) <= chunk_size:
        return _info_nce(query, keys, queue, temperature)
    rows = [
        checkpoint(_info_nce, q, k, queue, temperature, use_reentrant=False)
        for q, k in zip(query.split(chunk_size), keys.split(chunk_size), strict=True)
    ]
    return torch.cat(rows)


def _info_nce(query: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    positive = (query * keys).sum(1, keepdim=True)  # (N, 1)
    negative = query @ queue  # (N, K)
    logits = torch.cat([positive, negative], dim=1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long), reduction='none')


def disjoint_pairs(boxes: Tensor, batch_index: Tensor, iou_thr: float = 0.05) -> Tensor:
    """Which ordered pairs i != j are of one image and (nearly) do not overlap (Eq. 3): ``(N, N)`` bool.

    Args:
        boxes (Tensor): ``(N, 4)``; a box without area is in no pair.
        batch_index (Tensor): ``(N,)``, the image of each box.
        iou_thr (float): A pair's IoU must be below it; the paper uses 0.05.
    """
    same_image = batch_index[:, None] == batch_index[None]
    real = box_ops.area(boxes) > 0
    pairs = same_image & (box_ops.pairwise_iou(boxes, boxes) < iou_thr) & real[:, None] & real[None]
    return pairs.fill_diagonal_(False)


def intra_image_hinge(embeddings: Tensor, pairs: Tensor, alpha: float = 0.4) -> Tensor:
    """Eq. 3's sum: over the pairs, ``max(z_i . z_j - alpha, 0)``. A scalar; divide it by the number of pairs.

    Args:
        embeddings (Tensor): ``(N, D)``, L2-normalized query embeddings.
        pairs (Tensor): ``(N, N)`` bool.
        alpha (float): The margin; the paper uses 0.4.
    """
    return ((embeddings @ embeddings.T - alpha).clamp(min=0) * pairs).sum()


def intra_image_triplet(embeddings: Tensor, keys: Tensor, pairs: Tensor, alpha: float = 0.4) -> Tensor:
    """The authors' code in place of Eq. 3: over the pairs, ``max(q_i . k_j - q_j . k_j + alpha, 0)``. A scalar sum.

    Args:
        embeddings (Tensor): ``(N, D)``, L2-normalized query embeddings.
        keys (Tensor): ``(N, D)``, L2-normalized key embeddings of the unjittered boxes.
        pairs (Tensor): ``(N, N)`` bool.
        alpha (float): The margin; the authors' code uses 0.4.
    """
    similarity = embeddings @ keys.T  # (N, N), row i: q_i against every k_j
    return ((similarity - similarity.diagonal() + alpha).clamp(min=0) * pairs).sum()
