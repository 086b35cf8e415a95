"""Assignment of key images to batch-statistics groups, and un-shuffling of their embeddings.

If the two images of a positive pair are normalized by the same batch statistics, those statistics reveal the pair (He
et al., *Momentum Contrast*, CVPR 2020, Sec. 3.3: shuffling BN). The key encoder's batches are therefore composed
differently from the query encoder's: across ranks if there are several, across groups of the batch in a single process.
Images move together with their candidate boxes, and only embeddings are returned to the original order, not feature
maps.
"""

from dataclasses import dataclass

import torch
import torch.distributed as torch_dist
from mmengine.dist import get_rank, get_world_size
from torch import Tensor

KEY_BATCHES = ('auto', 'shuffle', 'split', 'sync', 'none')


def group_sizes(batch_size: int, bn_group: int = 32) -> list[int]:
    """Splits the batch of one process into ``max(2, B // bn_group)`` groups with separate batch statistics.

    Args:
        batch_size (int): B, at least 1.
        bn_group (int): Target number of images per group; 32 is the paper's batch size per GPU.

    Returns:
        list[int]: Images per group; sizes differ by at most 1, larger groups first.
    """
    groups = min(max(2, batch_size // bn_group), batch_size)
    return [batch_size // groups + (index < batch_size % groups) for index in range(groups)]


def _cpu_group() -> torch_dist.ProcessGroup | None:
    """Returns a process group for CPU tensors: boxes are exchanged there because the host must know their number."""
    if torch_dist.get_backend() == 'gloo':
        return None
    if not hasattr(_cpu_group, 'group'):
        _cpu_group.group = torch_dist.new_group(backend='gloo')
    return _cpu_group.group


def _all_gather(tensor: Tensor, group: torch_dist.ProcessGroup | None = None) -> Tensor:
    """Stacks tensors of equal shape from all ranks: ``(world, ...)``."""
    parts = [torch.empty_like(tensor) for _ in range(get_world_size())]
    torch_dist.all_gather(parts, tensor.contiguous(), group=group)
    return torch.stack(parts)


def gather_rows(rows: Tensor, counts: list[int], group: torch_dist.ProcessGroup | None = None) -> Tensor:
    """Concatenates the rows of all ranks in rank order.

    Args:
        rows (Tensor): ``(counts[rank], ...)``, the rows of this rank.
        counts (list[int]): Number of rows on every rank.
        group (ProcessGroup, optional): Process group; the default group if None.

    Returns:
        Tensor: ``(sum(counts), ...)``.
    """
    if len(counts) == 1:
        return rows
    if not any(counts):
        return rows  # no collective: backends may not expect tensors without elements
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    return torch.cat([part[:count] for part, count in zip(_all_gather(padded, group), counts, strict=True)])


@dataclass
class KeyPlan:
    """Assignment of key images to ranks and groups for one step, computed on the CPU.

    The methods index with ``images``, ``image_restore`` and ``object_restore``, and copy them to the device unless they
    are there already.

    Attributes:
        boxes (Tensor): ``(M, J, 4)``, candidate boxes of the images that this rank encodes.
        valid (Tensor): ``(M, J)`` bool, the candidates to embed.
        batch_index (Tensor): ``(M,)``, index of each object's image in the result of :meth:`take_images`.
        sizes (list[int]): Images per group of batch statistics, in the order of :meth:`take_images`.
        images (Tensor): ``(B,)``, indices of the images that this rank encodes, among the batches of all ranks.
        image_restore (Tensor): ``(B,)``, indices of this rank's images among the results of all ranks.
        object_restore (Tensor): ``(N,)``, indices of this rank's objects among the results of all ranks.
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
        """Returns the images ``(B, ...)`` that this rank encodes, gathered from the batches of all ranks."""
        if self.exchange:
            device = images.device.type
            if torch.is_autocast_enabled(device):  # the first convolution casts them anyway; this halves the bytes sent
                images = images.to(torch.get_autocast_dtype(device))
            images = _all_gather(images).flatten(0, 1)  # (world, B, ...) -> (world * B, ...)
        return images[self.images.to(images.device, non_blocking=True)]

    def restore_images(self, embeddings: Tensor) -> Tensor:
        """Un-shuffles image embeddings: ``(B, D)`` as encoded -> ``(B, D)`` in the order of this rank's batch."""
        if self.exchange:
            embeddings = _all_gather(embeddings).flatten(0, 1)
        return embeddings[self.image_restore.to(embeddings.device, non_blocking=True)]

    def restore_objects(self, embeddings: Tensor) -> Tensor:
        """Un-shuffles object embeddings: ``(M, ...)`` as encoded -> ``(N, ...)`` in the order of this rank's batch."""
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
    """Assigns the key images of one step to ranks and groups.

    All ranks must call it with the same ``step`` and ``batch_size``.

    Args:
        boxes (Tensor): ``(N, J, 4)``, candidate boxes of this rank, on the CPU; N may differ between ranks and be 0.
        batch_index (Tensor): ``(N,)`` long, the image of each object.
        batch_size (int): B, images per rank.
        mode (str): ``'shuffle'``: images move randomly between ranks. ``'split'``: images move randomly between groups
            of this rank's batch. ``'auto'``: ``'shuffle'`` with several ranks, ``'split'`` with one. ``'sync'``: images
            stay in place; all ranks share statistics (SyncBN). ``'none'``: images stay in place.
        step (int): Seed of the permutation, so that all ranks compute the same one without communication.
        bn_group (int): See :func:`group_sizes`.
        valid (Tensor, optional): ``(N, J)`` bool, the candidates to embed; all by default.

    Returns:
        KeyPlan: The plan of this rank.
    """
    if valid is None:
        valid = torch.ones(boxes.shape[:2], dtype=torch.bool)
    world, rank = get_world_size(), get_rank()
    if mode == 'auto':
        mode = 'shuffle' if world > 1 else 'split'
    exchange = mode == 'shuffle' and world > 1
    # Modes without exchange use the same arithmetic with a world size of 1.
    ranks, mine = (world, rank) if exchange else (1, 0)
    order = torch.arange(ranks * batch_size)
    if mode in ('shuffle', 'split'):
        order = torch.randperm(len(order), generator=torch.Generator().manual_seed(step))
    place = order.argsort()  # position at which each image of all batches is encoded

    own_counts = [len(boxes)] * world
    if world > 1:
        own_counts = _all_gather(torch.tensor([len(boxes)]), _cpu_group()).flatten().tolist()
    image = batch_index
    if exchange:
        image = gather_rows(batch_index + rank * batch_size, own_counts, _cpu_group())
        # (N, J, 4) and (N, J) -> (N, J, 5): one collective call
        rows = gather_rows(torch.cat([boxes, valid[..., None].to(boxes)], dim=2), own_counts, _cpu_group())
        boxes, valid = rows[..., :4], rows[..., 4] > 0
    encoder = place[image] // batch_size  # (objects,): rank that encodes each
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
