"""The parts that turn features into embeddings and embeddings into losses."""

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_world_size
from mmengine.model import BaseModule
from mmselfsup.registry import MODELS
from torch import Tensor, nn

from ccop_mm.models import losses


def mean_over_ranks(total: Tensor, count: Tensor | float) -> Tensor:
    """``total / count`` such that the ranks' gradients, which DDP averages, add up to the mean over all ranks' items.

    Uneven counts are the rule here, so the mean of the ranks' means would weigh the objects of a poor rank more. A
    count of 0 on every rank gives 0, with a gradient path.

    Args:
        total (Tensor): This rank's sum, a scalar.
        count (Tensor | float): This rank's number of items.
    """
    # new_full fills on the device; making the tensor from a number would copy it there and wait.
    count = count.to(total.dtype) if isinstance(count, Tensor) else total.new_full((), count)
    if get_world_size() > 1:
        all_reduce(count, op='mean')
    return total / count.clamp(min=1 / get_world_size())


@MODELS.register_module()
class ProjectionMLP(BaseModule):
    """Two fully connected layers with a ReLU between, and L2 normalization (Sec. 3.1).

    Args:
        in_channels (int): Features per row after flattening.
        hid_channels (int): Width of the hidden layer; the paper uses 2048, as MoCo v2.
        out_channels (int): Size of the embedding; the paper uses 128.
        dropout (float): After the ReLU. The paper has none; the authors' code uses 0.1.
        init_cfg (dict, optional): PyTorch's own initialization by default, as MoCo v2.
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
        """``(N, ...)`` -> ``(N, out_channels)`` of unit length; N may be 0."""
        hidden = self.dropout(F.relu(self.fc1(features.flatten(1)), inplace=True))
        output = self.fc2(hidden)
        # Half precision would give the unit vectors steps of 0.4 %: they are compared in float32 or better.
        return F.normalize(output.to(torch.promote_types(output.dtype, torch.float32)), dim=1)


@MODELS.register_module()
class ImageContrastHead(BaseModule):
    """Image loss: InfoNCE against the image queue (Eq. 1).

    Args:
        temperature (float): The paper uses 0.2.
        chunk_size (int, optional): Rows whose logits exist at once; see :func:`ccop_mm.models.losses.info_nce`.
        init_cfg (dict, optional): Unused; there are no parameters.
    """

    def __init__(self, temperature: float = 0.2, chunk_size: int | None = None, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        if temperature <= 0:
            raise ValueError(f'temperature must be positive, got {temperature}')
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f'chunk_size must be at least 1, got {chunk_size}')
        self.temperature = temperature
        self.chunk_size = chunk_size

    def forward(self, query: Tensor, keys: Tensor, queue: Tensor) -> Tensor:
        """Mean of Eq. 1 over the rows of all ranks.

        Args:
            query (Tensor): ``(N, D)``, L2-normalized; N may be 0, here or on every rank.
            keys (Tensor): ``(N, D)``, without gradient.
            queue (Tensor): ``(D, K)``.

        Returns:
            Tensor: A scalar, 0 with a gradient path where there is no row.
        """
        rows = losses.info_nce(query, keys, queue, self.temperature, self.chunk_size)
        return mean_over_ranks(rows.sum(), len(rows))


@MODELS.register_module()
class ObjectContrastHead(ImageContrastHead):
    """Object loss: the hardest jittered box is the positive key, InfoNCE against the object queue (Eq. 1, Sec. 3.3).

    Args:
        temperature (float): The paper uses 0.2.
        chunk_size (int, optional): Rows whose logits exist at once; see :func:`ccop_mm.models.losses.info_nce`.
        init_cfg (dict, optional): Unused; there are no parameters.
    """

    @torch.no_grad()
    def select(self, query: Tensor, candidates: Tensor, valid: Tensor) -> Tensor:
        """The hardest candidate of each object: the valid one least similar to its query.

        Args:
            query (Tensor): ``(N, D)``, L2-normalized.
            candidates (Tensor): ``(N, J, D)``, L2-normalized.
            valid (Tensor): ``(N, J)`` bool.

        Returns:
            Tensor: ``(N,)`` long; 0 where no candidate is valid.
        """
        similarity = torch.einsum('nd,njd->nj', query, candidates)
        return similarity.masked_fill(~valid, torch.inf).argmin(1)


@MODELS.register_module()
class IntraImageLoss(BaseModule):
    """Pushes apart the embeddings of objects of one image that do not overlap (Eq. 3).

    Args:
        alpha (float): Margin; the paper uses 0.4.
        iou_thr (float): Pairs overlap less than this; the paper uses 0.05.
        mode (str): ``'hinge'`` (Eq. 3) or ``'triplet'`` (the authors' code, which needs ``keys``).
        init_cfg (dict, optional): Unused; there are no parameters.
    """

    def __init__(
        self, alpha: float = 0.4, iou_thr: float = 0.05, mode: str = 'hinge', init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg)
        if mode not in ('hinge', 'triplet'):
            raise ValueError(f"mode must be 'hinge' or 'triplet', got {mode!r}")
        self.alpha = alpha
        self.iou_thr = iou_thr
        self.mode = mode

    def forward(self, embeddings: Tensor, boxes: Tensor, batch_index: Tensor, keys: Tensor | None = None) -> Tensor:
        """Mean over the pairs of all ranks.

        Args:
            embeddings (Tensor): ``(N, D)``, L2-normalized query embeddings; N may be 0.
            boxes (Tensor): ``(N, 4)``, the unjittered boxes that decide which objects form a pair.
            batch_index (Tensor): ``(N,)``, the image of each object.
            keys (Tensor, optional): ``(N, D)``, key embeddings of the unjittered boxes, for ``'triplet'``.

        Returns:
            Tensor: A scalar, 0 with a gradient path where there is no pair.
        """
        pairs = losses.disjoint_pairs(boxes, batch_index, self.iou_thr)
        if self.mode == 'hinge':
            total = losses.intra_image_hinge(embeddings, pairs, self.alpha)
        else:
            if keys is None:
                raise ValueError("mode='triplet' needs the key embeddings of the unjittered boxes (keys)")
            total = losses.intra_image_triplet(embeddings, keys, pairs, self.alpha)
        return mean_over_ranks(total, pairs.sum())
