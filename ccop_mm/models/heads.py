"""Projection MLP and loss heads; the formulas are in :mod:`ccop_mm.models.losses`."""

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_world_size
from mmengine.model import BaseModule
from mmselfsup.registry import MODELS
from torch import Tensor, nn

from ccop_mm.models import losses


def mean_over_ranks(total: Tensor, count: Tensor | float) -> Tensor:
    """Divides a sum by the mean count over ranks, so that DDP's averaged gradients are those of the global mean.

    Counts differ between ranks, so the mean of the ranks' means would overweight objects of ranks that have few.

    Args:
        total (Tensor): Sum over the items of this rank, a scalar.
        count (Tensor | float): Number of items of this rank.

    Returns:
        Tensor: A scalar; 0 with a gradient path if the count is 0 on every rank.
    """
    # new_full fills on the device; a tensor made from a Python number would be copied there, blocking the host.
    count = count.to(total.dtype) if isinstance(count, Tensor) else total.new_full((), count)
    if get_world_size() > 1:
        all_reduce(count, op='mean')
    return total / count.clamp(min=1 / get_world_size())


def zero_loss(embeddings: Tensor) -> Tensor:
    """Returns a scalar 0 that keeps ``embeddings`` in the graph, so that DDP gets a gradient of every parameter."""
    return embeddings[:0].sum()


def check_loss_weight(loss_weight: float) -> float:
    """Returns the weight as a float.

    Raises:
        ValueError: The weight is negative.
    """
    if loss_weight < 0:
        raise ValueError(f'loss_weight must be at least 0, got {loss_weight}')
    return float(loss_weight)


@MODELS.register_module()
class ProjectionMLP(BaseModule):
    """Two fully connected layers with a ReLU in between, followed by L2 normalization (Sec. 3.1).

    Args:
        in_channels (int): Number of input features per row after flattening.
        hid_channels (int): Width of the hidden layer; 2048 in the paper, as in MoCo v2.
        out_channels (int): Embedding dimension; 128 in the paper.
        dropout (float): Dropout rate after the ReLU; 0 in the paper, 0.1 in the authors' code.
        init_cfg (dict, optional): Weight initialization config; PyTorch's default as in MoCo v2.
    """

    def __init__(
        self,
        in_channels: int,
        hid_channels: int = 2048,
        out_channels: int = 128,
        dropout: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.fc1 = nn.Linear(in_channels, hid_channels)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hid_channels, out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Embeds features.

        Args:
            features (Tensor): ``(N, ...)``; N may be 0.

        Returns:
            Tensor: ``(N, out_channels)``, L2-normalized, float32 or wider.
        """
        hidden = self.dropout(F.relu(self.fc1(features.flatten(1)), inplace=True))
        output = self.fc2(hidden)
        # bfloat16 resolves unit vectors to 0.4 % only, too coarse for comparing similarities.
        return F.normalize(output.to(torch.promote_types(output.dtype, torch.float32)), dim=1)


@MODELS.register_module()
class ImageContrastHead(BaseModule):
    """Image loss: InfoNCE against the image queue (Eq. 1).

    Args:
        temperature (float): Temperature; 0.2 in the paper.
        chunk_size (int, optional): Rows per block of logits; see :func:`ccop_mm.models.losses.info_nce`.
        loss_weight (float): Factor of the loss; 0 skips its computation.
        init_cfg (dict, optional): Unused, since there are no parameters.
    """

    def __init__(
        self,
        temperature: float = 0.2,
        chunk_size: int | None = None,
        loss_weight: float = 1.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if temperature <= 0:
            raise ValueError(f'temperature must be positive, got {temperature}')
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f'chunk_size must be at least 1, got {chunk_size}')
        self.temperature = temperature
        self.chunk_size = chunk_size
        self.loss_weight = check_loss_weight(loss_weight)

    def forward(self, query: Tensor, keys: Tensor, queue: Tensor) -> Tensor:
        """Computes the mean of Eq. 1 over the rows of all ranks, times ``loss_weight``.

        Args:
            query (Tensor): ``(N, D)``, L2-normalized; N may be 0, on this or on every rank.
            keys (Tensor): ``(N, D)``, L2-normalized, without gradient.
            queue (Tensor): ``(D, K)``.

        Returns:
            Tensor: A scalar; 0 with a gradient path if there is no row.
        """
        if not self.loss_weight:
            return zero_loss(query)
        rows = losses.info_nce(query, keys, queue, self.temperature, self.chunk_size)
        return self.loss_weight * mean_over_ranks(rows.sum(), len(rows))


@MODELS.register_module()
class ObjectContrastHead(ImageContrastHead):
    """Object loss: InfoNCE against the object queue, with the hardest candidate as positive (Eq. 1, Sec. 3.3).

    Args:
        temperature (float): Temperature; 0.2 in the paper.
        chunk_size (int, optional): Rows per block of logits; see :func:`ccop_mm.models.losses.info_nce`.
        loss_weight (float): Factor of the loss; 0 skips its computation.
        init_cfg (dict, optional): Unused, since there are no parameters.
    """

    @torch.no_grad()
    def select(self, query: Tensor, candidates: Tensor, valid: Tensor) -> Tensor:
        """Selects the hardest candidate of each object: the valid one with the lowest similarity to the query.

        Args:
            query (Tensor): ``(N, D)``, L2-normalized.
            candidates (Tensor): ``(N, J, D)``, L2-normalized.
            valid (Tensor): ``(N, J)`` bool.

        Returns:
            Tensor: ``(N,)`` long; 0 for an object without a valid candidate.
        """
        similarity = torch.einsum('nd,njd->nj', query, candidates)
        return similarity.masked_fill(~valid, torch.inf).argmin(1)


@MODELS.register_module()
class IntraImageLoss(BaseModule):
    """Pushes apart embeddings of objects in one image whose boxes do not overlap (Eq. 3).

    Args:
        alpha (float): Margin; 0.4 in the paper.
        iou_thr (float): IoU below which two boxes count as disjoint; 0.05 in the paper.
        mode (str): ``'hinge'`` (Eq. 3) or ``'triplet'`` (the authors' code, which requires ``keys``).
        loss_weight (float): Factor of the loss; 0 skips its computation.
        init_cfg (dict, optional): Unused, since there are no parameters.
    """

    def __init__(
        self,
        alpha: float = 0.4,
        iou_thr: float = 0.05,
        mode: str = 'hinge',
        loss_weight: float = 1.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if mode not in ('hinge', 'triplet'):
            raise ValueError(f"mode must be 'hinge' or 'triplet', got {mode!r}")
        self.alpha = alpha
        self.iou_thr = iou_thr
        self.mode = mode
        self.loss_weight = check_loss_weight(loss_weight)

    def forward(self, embeddings: Tensor, boxes: Tensor, batch_index: Tensor, keys: Tensor | None = None) -> Tensor:
        """Computes the mean over the disjoint pairs of all ranks, times ``loss_weight``.

        Args:
            embeddings (Tensor): ``(N, D)``, L2-normalized query embeddings; N may be 0.
            boxes (Tensor): ``(N, 4)`` xyxy, the unjittered boxes, which decide which objects form a pair.
            batch_index (Tensor): ``(N,)``, the image of each object.
            keys (Tensor, optional): ``(N, D)``, key embeddings of the unjittered boxes; for ``'triplet'``.

        Returns:
            Tensor: A scalar; 0 with a gradient path if there is no pair.
        """
        if not self.loss_weight:
            return zero_loss(embeddings)
        pairs = losses.disjoint_pairs(boxes, batch_index, self.iou_thr)
        if self.mode == 'hinge':
            total = losses.intra_image_hinge(embeddings, pairs, self.alpha)
        else:
            if keys is None:
                raise ValueError("mode='triplet' requires keys, the key embeddings of the unjittered boxes")
            total = losses.intra_image_triplet(embeddings, keys, pairs, self.alpha)
        return self.loss_weight * mean_over_ranks(total, pairs.sum())
