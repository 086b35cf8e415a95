"""The losses of CCOP as pure functions of tensors (Eq. 1 and 3)."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from ccop_mm.utils import boxes as box_ops

#: Default number of logits per block: 64 MB in float32, 256 rows with the paper's queue.
CHUNK_LOGITS = 2**24


def info_nce(
    query: Tensor, keys: Tensor, queue: Tensor, temperature: float = 0.2, chunk_size: int | None = None
) -> Tensor:
    """Computes InfoNCE (Eq. 1) for each row.

    ``-log(exp(q.k / T) / (exp(q.k / T) + sum over the queue of exp(q.n / T)))``. The gradient (Eq. 5) is computed in
    the forward pass, block by block, so that neither the N x K logits nor the queue are kept for the backward pass, and
    the queue may be modified in place afterwards.

    Args:
        query (Tensor): ``(N, D)``, L2-normalized; N may be 0.
        keys (Tensor): ``(N, D)``, L2-normalized, the positive of each row; gets no gradient.
        queue (Tensor): ``(D, K)``, the negatives shared by all rows; gets no gradient.
        temperature (float): T; 0.2 in the paper.
        chunk_size (int, optional): Rows per block of logits; by default blocks have 2^24 logits (64 MB in float32).

    Returns:
        Tensor: ``(N,)`` losses, differentiable once.
    """
    if chunk_size is None:
        chunk_size = max(1, CHUNK_LOGITS // queue.shape[1])
    return _InfoNCE.apply(query, keys.detach(), queue.detach(), temperature, chunk_size)


class _InfoNCE(torch.autograd.Function):
    """See :func:`info_nce`."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, query: Tensor, keys: Tensor, queue: Tensor, temperature: float, chunk_size: int
    ) -> Tensor:
        losses, gradients = [], []
        for rows, positives in zip(query.split(chunk_size), keys.split(chunk_size), strict=True):
            scaled = rows / temperature
            positive = (scaled * positives).sum(1, keepdim=True)  # (n, 1)
            logits = scaled @ queue  # (n, K)
            # Unnormalized softmax weights, in place; subtracting the largest logit avoids overflow.
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
    def backward(ctx: FunctionCtx, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return grad_losses[:, None] * gradients, None, None, None, None


def disjoint_pairs(boxes: Tensor, batch_index: Tensor, iou_thr: float = 0.05) -> Tensor:
    """Finds the ordered pairs i != j of objects in one image whose boxes do not (or barely) overlap (Eq. 3).

    Args:
        boxes (Tensor): ``(N, 4)`` xyxy; a box without area belongs to no pair.
        batch_index (Tensor): ``(N,)``, the image of each box.
        iou_thr (float): Upper bound (exclusive) of the IoU of a pair; 0.05 in the paper.

    Returns:
        Tensor: ``(N, N)`` bool.
    """
    same_image = batch_index[:, None] == batch_index[None]
    has_area = box_ops.area(boxes) > 0
    pairs = same_image & (box_ops.pairwise_iou(boxes, boxes) < iou_thr) & has_area[:, None] & has_area[None]
    return pairs.fill_diagonal_(False)


def intra_image_hinge(embeddings: Tensor, pairs: Tensor, alpha: float = 0.4) -> Tensor:
    """Sums ``max(z_i . z_j - alpha, 0)`` over the pairs (numerator of Eq. 3).

    Args:
        embeddings (Tensor): ``(N, D)``, L2-normalized query embeddings.
        pairs (Tensor): ``(N, N)`` bool.
        alpha (float): Margin; 0.4 in the paper.

    Returns:
        Tensor: A scalar.
    """
    return ((embeddings @ embeddings.T - alpha).clamp(min=0) * pairs).sum()


def intra_image_triplet(embeddings: Tensor, keys: Tensor, pairs: Tensor, alpha: float = 0.4) -> Tensor:
    """Sums ``max(q_i . k_j - q_j . k_j + alpha, 0)`` over the pairs (the authors' code, in place of Eq. 3).

    Args:
        embeddings (Tensor): ``(N, D)``, L2-normalized query embeddings.
        keys (Tensor): ``(N, D)``, L2-normalized key embeddings of the unjittered boxes.
        pairs (Tensor): ``(N, N)`` bool.
        alpha (float): Margin; 0.4 in the authors' code.

    Returns:
        Tensor: A scalar.
    """
    similarity = embeddings @ keys.T  # (N, N), row i: q_i against every k_j
    return ((similarity - similarity.diagonal() + alpha).clamp(min=0) * pairs).sum()
