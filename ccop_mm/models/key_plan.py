"""Which images share batch statistics in the key encoder, and how embeddings find their way back.

A positive pair whose two images were normalized by the same statistics can be told by them (MoCo, Sec. 3.3). So the key
encoder's batches are composed differently from the query encoder's: across ranks where there are several, across groups
of one rank's batch where there is one. Images move together with their candidate boxes, and only embeddings of 128
numbers come back; feature maps stay where they are.
"""

from dataclasses import dataclass

import torch
import torch.distributed as torch_dist
from mmengine.dist import get_rank, get_world_size
from torch import Tensor

KEY_BATCHES = ('auto', 'shuffle', 'split', 'sync', 'none')


def group_sizes(batch_size: int, bn_group: int = 32) -> list[int]:
    """Images per group of batch statistics in one process: ``max(2, B // bn_group)`` groups, the first ones larger by
    one.

    Args:
        batch_size (int): B, at least 1.
        bn_group (int): Images per group to aim for; 32 is the paper's batch per GPU.
    """
    groups = min(max(2, batch_size // bn_group), batch_size)
    return [batch_size // groups + (index < batch_size % groups) for index in range(groups)]


def _host_group():
    """A process group for tensors on the CPU; boxes are exchanged there, since the host must know their numbers."""
    if torch_dist.get_backend() == 'gloo':
        return None
    if not hasattr(_host_group, 'group'):
        _host_group.group = torch_dist.new_group(backend='gloo')
    return _host_group.group


def _all_gather(tensor: Tensor, group=None) -> Tensor:
    """Equal-shaped tensors of all ranks: ``(world, ...)``."""
    parts = [torch.empty_like(tensor) for _ in range(get_world_size())]
    torch_dist.all_gather(parts, tensor.contiguous(), group=group)
    return torch.stack(parts)


def gather_rows(rows: Tensor, counts: list[int], group=None) -> Tensor:
    """The rows of all ranks in the order of the ranks, ``(sum(counts), ...)``.

    Args:
        rows (Tensor): This rank's ``(counts[rank], ...)``.
        counts (list[int]): Rows on every rank.
        group (optional): The process group; the default one unless given.
    """
    if len(counts) == 1:
        return rows
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    return torch.cat([part[:count] for part, count in zip(_all_gather(padded, group), counts, strict=True)])


@dataclass
class KeyPlan:
    """One step's assignment of key images to ranks and groups. It is made on the CPU.

    The three tensors that the methods index with (``images``, ``image_restore``, ``object_restore``) may be put on the
    device; else the methods copy them.

    Attributes:
        boxes (Tensor): ``(M, J, 4)``, candidate boxes of the images that this rank encodes.
        valid (Tensor): ``(M, J)`` bool, which of them count: no other needs an embedding.
        batch_index (Tensor): ``(M,)``, the place of each one's image in what :meth:`take_images` returns.
        sizes (list[int]): Images per group of batch statistics, in that order.
        images (Tensor): ``(B,)``, which images of all ranks' batches this rank encodes.
        image_restore (Tensor): ``(B,)``, where this rank's own images are among all ranks' results.
        object_restore (Tensor): ``(N,)``, where this rank's own objects are among all ranks' results.
        encoded_counts (list[int]): M of every rank.
        object_counts (list[int]): N of every rank.
        exchange (bool): Whether images move between ranks.
    """

    boxes: Tensor
    valid: Tensor
    batch_index: Tensor
    sizes: list[int]
    images: Tensor
    image_restore: Tensor
    object_restore: Tensor
    encoded_counts: list[int]
    object_counts: list[int]
    exchange: bool

    def take_images(self, images: Tensor) -> Tensor:
        """The images ``(B, ...)`` that this rank encodes, from all ranks' batches."""
        if self.exchange:
            device = images.device.type
            if torch.is_autocast_enabled(device):  # the first convolution would round them so anyway: half the bytes
                images = images.to(torch.get_autocast_dtype(device))
            images = _all_gather(images).flatten(0, 1)  # (world, B, ...) -> (world * B, ...)
        return images[self.images.to(images.device, non_blocking=True)]

    def restore_images(self, embeddings: Tensor) -> Tensor:
        """``(B, D)`` in the order of :meth:`take_images` -> ``(B, D)`` in the order of this rank's own batch."""
        if self.exchange:
            embeddings = _all_gather(embeddings).flatten(0, 1)
        return embeddings[self.image_restore.to(embeddings.device, non_blocking=True)]

    def restore_objects(self, embeddings: Tensor) -> Tensor:
        """``(M, ...)`` in the order of ``boxes`` -> ``(N, ...)`` in the order of this rank's own objects."""
        if not self.exchange:
            return embeddings
        embeddings = gather_rows(embeddings, self.encoded_counts)
        return embeddings[self.object_restore.to(embeddings.device, non_blocking=True)]


def plan_keys(
    boxes: Tensor,
    batch_index: Tensor,
    batch_size: int,
    mode: str,
    step: int,
    bn_group: int = 32,
    valid: Tensor | None = None,
) -> KeyPlan:
    """Draws one step's plan. Every rank must call it with the same ``step``, and with the same ``batch_size``.

    Args:
        boxes (Tensor): ``(N, J, 4)``, this rank's candidate boxes, on the CPU; N may differ between ranks and be 0.
        batch_index (Tensor): ``(N,)`` long, the image of each object.
        batch_size (int): B, images per rank.
        mode (str): ``'auto'``: ``'shuffle'`` with several ranks, ``'split'`` with one. ``'shuffle'``: images move
            between ranks at random. ``'split'``: they move between groups of this rank's batch. ``'sync'``: neither,
            for models whose norm layers are SyncBN: then all ranks' images share statistics. ``'none'``: neither.
        step (int): Seeds the permutation, so that all ranks draw the same one without a message.
        bn_group (int): See :func:`group_sizes`.
        valid (Tensor, optional): ``(N, J)`` bool, which candidates count; all by default.
    """
    if valid is None:
        valid = torch.ones(boxes.shape[:2], dtype=torch.bool)
    world, rank = get_world_size(), get_rank()
    if mode == 'auto':
        mode = 'shuffle' if world > 1 else 'split'
    exchange = mode == 'shuffle' and world > 1
    # Rank-local modes run the same arithmetic in a world of one.
    ranks, mine = (world, rank) if exchange else (1, 0)
    order = torch.arange(ranks * batch_size)
    if mode in ('shuffle', 'split'):
        order = torch.randperm(len(order), generator=torch.Generator().manual_seed(step))
    place = order.argsort()  # where each image of all batches is encoded

    own_counts = [len(boxes)] * world
    if world > 1:
        own_counts = _all_gather(torch.tensor([len(boxes)]), _host_group()).flatten().tolist()
    image = batch_index
    if exchange:
        image = gather_rows(batch_index + rank * batch_size, own_counts, _host_group())
        # (N, J, 4) and (N, J) -> (N, J, 5): one message
        rows = gather_rows(torch.cat([boxes, valid[..., None].to(boxes)], dim=2), own_counts, _host_group())
        boxes, valid = rows[..., :4], rows[..., 4] > 0
    encoder = place[image] // batch_size  # (objects,): the rank that encodes each
    by_encoder = encoder.argsort(stable=True)
    own_start = sum(own_counts[:rank]) if exchange else 0
    return KeyPlan(
        boxes=boxes[encoder == mine],
        valid=valid[encoder == mine],
        batch_index=(place[image] % batch_size)[encoder == mine],
        sizes=group_sizes(batch_size, bn_group) if mode == 'split' else [batch_size],
        images=order[mine * batch_size : (mine + 1) * batch_size],
        image_restore=place[mine * batch_size : (mine + 1) * batch_size],
        object_restore=by_encoder.argsort()[own_start : own_start + own_counts[rank]],
        encoded_counts=torch.bincount(encoder, minlength=ranks).tolist(),
        object_counts=own_counts,
        exchange=exchange,
    )
