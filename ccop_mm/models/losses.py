"""The three losses of CCOP as functions of tensors."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ccop_mm import boxes as box_ops

#: Logits that exist at once unless told otherwise: 64 MB in float32, 256 rows against the paper's queue.
CHUNK_LOGITS = 2**24


def info_nce(
    query: Tensor, keys: Tensor, queue: Tensor, temperature: float = 0.2, chunk_size: int | None = None
) -> Tensor:
    """Eq. 1 for each row: ``-log(exp(q.k / T) / (exp(q.k / T) + sum over the queue of exp(q.n / T)))``.

    The gradient (Eq. 5: the softmax's weights times the keys, less the positive) is worked out with the loss, some rows
    at a time, so that neither logits nor queue are kept for backward. All N x K logits of 256 photos of 12 objects
    would be 0.8 GB in float32, several times over; and the queue may change in place as soon as this returns.

    Args:
        query (Tensor): ``(N, D)``, L2-normalized; N may be 0.
        keys (Tensor): ``(N, D)``, the positive of each row, L2-normalized. A constant: it gets no gradient.
        queue (Tensor): ``(D, K)``, the negatives, which all rows share. A constant.
        temperature (float): T; the paper uses 0.2.
        chunk_size (int, optional): Rows whose logits exist at once; as many as make 64 MB by default.

    Returns:
        Tensor: ``(N,)`` losses, differentiable once.
    """
    if chunk_size is None:
        chunk_size = max(1, CHUNK_LOGITS // queue.shape[1])
    return _InfoNCE.apply(query, keys.detach(), queue.detach(), temperature, chunk_size)


class _InfoNCE(torch.autograd.Function):
    """See :func:`info_nce`."""

    @staticmethod
    def forward(ctx, query: Tensor, keys: Tensor, queue: Tensor, temperature: float, chunk_size: int) -> Tensor:
        losses, gradients = [], []
        for rows, positives in zip(query.split(chunk_size), keys.split(chunk_size), strict=True):
            scaled = rows / temperature
            positive = (scaled * positives).sum(1, keepdim=True)  # (n, 1)
            logits = scaled @ queue  # (n, K)
            # In place: softmax's weights before their division by the sum; the greatest logit keeps exp in range.
            top = torch.maximum(logits.amax(1, keepdim=True), positive)
            weights, own = logits.sub_(top).exp_(), (positive - top).exp()
            total = weights.sum(1, keepdim=True) + own
            losses.append((total.log() + top - positive).squeeze(1))
            if ctx.needs_input_grad[0]:
                gradients.append((torch.addmm(own * positives, weights, queue.T) / total - positives) / temperature)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return grad_losses[:, None] * gradients, None, None, None, None


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
