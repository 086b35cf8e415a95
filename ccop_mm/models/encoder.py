"""Functions of an image and object encoder (Sec. 3.1), shared by the query and the key encoder.

An encoder is any module with the attributes :data:`ENCODER_PARTS`: :class:`ccop_mm.models.CCOP` itself (query) and its
:class:`ccop_mm.models.MomentumEncoder` (key).
"""

import torch
from torch import Tensor, nn

from ccop_mm.models.grouped_batch_norm import deinterleave, interleave, set_groups, supports_groups
from ccop_mm.models.object_pool import ObjectPool, RoIs

#: Modules that process images and may contain batch normalization.
IMAGE_PARTS = ('backbone', 'neck', 'image_projector')

#: Modules of an encoder.
ENCODER_PARTS = (*IMAGE_PARTS, 'object_projector', 'level_projector')

#: RoI features kept in memory at a time without gradients: 1,024 x 256 x 7 x 7 float32 values are 51 MB.
MAX_POOLED_ROIS = 1024

Pyramid = tuple[Tensor, ...]


def supports_interleaving(encoder: nn.Module, memory_format: torch.memory_format) -> bool:
    """Returns whether one forward pass can keep the batch statistics of several equal groups of images apart.

    :class:`ccop_mm.models.grouped_batch_norm.GroupedBatchNorm2d` folds groups into channels, which is a view only of
    contiguous ``(B, C, H, W)`` memory.
    """
    return memory_format == torch.contiguous_format and all(
        supports_groups(getattr(encoder, name)) for name in IMAGE_PARTS
    )


def encode_images(
    encoder: nn.Module,
    images: Tensor,
    group_sizes: list[int],
    interleaved: bool,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[Tensor, Pyramid]:
    """Computes image embeddings and feature maps, with separate batch statistics for each group of images.

    Args:
        encoder (nn.Module): Query or key encoder.
        images (Tensor): ``(B, 3, H, W)``, normalized.
        group_sizes (list[int]): Images per group, in the order of the batch.
        interleaved (bool): Process all groups in one pass; requires :func:`supports_interleaving` and groups of equal
            size. The feature maps then stay interleaved, since reordering them would copy them: image b is at index
            ``deinterleave(torch.arange(B), len(group_sizes))[b]``.
        memory_format (torch.memory_format): Memory format of the images and feature maps.

    Returns:
        tuple[Tensor, tuple[Tensor, ...]]: Embeddings ``(B, D)``, L2-normalized, in the order of the batch, and the
        pooled levels, each ``(B, C, H_l, W_l)``.
    """
    images = images.contiguous(memory_format=memory_format)
    num_groups = len(group_sizes)
    set_groups([getattr(encoder, name) for name in IMAGE_PARTS], num_groups if interleaved else 1)
    if interleaved:
        embeddings, pyramid = _encode(encoder, interleave(images, num_groups))
        return deinterleave(embeddings, num_groups), pyramid
    encoded = [_encode(encoder, group) for group in images.split(group_sizes)]
    embeddings, pyramids = zip(*encoded, strict=True)
    return torch.cat(embeddings), tuple(torch.cat(level) for level in zip(*pyramids, strict=True))


def _encode(encoder: nn.Module, images: Tensor) -> tuple[Tensor, Pyramid]:
    features = encoder.backbone(images)
    pyramid = encoder.level_projector(encoder.neck(features))
    return encoder.image_projector(features[-1].mean(dim=(2, 3))), pyramid


def embed_objects(encoder: nn.Module, object_pool: ObjectPool, pyramid: Pyramid, rois: RoIs, num_rows: int) -> Tensor:
    """Computes object embeddings from feature maps: RoIAlign, then the object MLP.

    Args:
        encoder (nn.Module): Query or key encoder.
        object_pool (ObjectPool): RoIAlign over the levels.
        pyramid (tuple[Tensor, ...]): Pooled levels, each ``(B, C, H_l, W_l)``.
        rois (RoIs): Boxes sorted by level; ``rois.order`` gives the output row of each.
        num_rows (int): N, number of output rows; rows that ``rois.order`` does not name are 0.

    Returns:
        Tensor: ``(N, D)``, L2-normalized.
    """
    # With gradients, all RoI features are kept for the backward pass anyway.
    parts = [rois] if torch.is_grad_enabled() else rois.split(MAX_POOLED_ROIS)
    pyramid = object_pool.prepare_pyramid(pyramid)
    rows = [encoder.object_projector(object_pool(pyramid, part)) for part in parts]
    embeddings = torch.cat(rows) if len(rows) > 1 else rows[0]  # sorted by level
    return embeddings.new_zeros(num_rows, embeddings.shape[1]).index_copy(0, rois.order, embeddings)
