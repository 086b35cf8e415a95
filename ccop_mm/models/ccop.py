"""Curricular Contrastive Object-level Pre-training (CCOP)."""

import warnings
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmselfsup.models import BaseModel
from mmselfsup.registry import MODELS, TRANSFORMS
from torch import Tensor, nn

from ccop_mm.models.encoder import ENCODER_PARTS, IMAGE_PARTS, embed_objects, encode_images, supports_interleaving
from ccop_mm.models.encoder_layout import describe_layout, find_untrained
from ccop_mm.models.grouped_batch_norm import (
    GroupedBatchNorm2d,
    has_batch_norm,
    has_sync_batch_norm,
    set_groups,
)
from ccop_mm.models.key_plan import KEY_BATCHES, gather_rows
from ccop_mm.models.level_projector import LevelProjector
from ccop_mm.models.momentum import MomentumEncoder
from ccop_mm.models.object_pool import ObjectPool, RoIs
from ccop_mm.models.queue import FeatureQueue
from ccop_mm.models.step_plan import ObjectBoxes, StepPlan, copy_to_device, plan_step
from ccop_mm.utils.encoder_graph import EncoderGraph

#: Minimum number of images that share batch statistics before a warning (a rule of thumb; the paper has 32 per GPU).
MIN_GROUP_SIZE = 8


@MODELS.register_module()
class CCOP(BaseModel):
    """Contrasts images, objects across images, and the objects of one image.

    Yang, Huang, Crowley: *Contrastive Object-level Pre-training with Spatial Noise Curriculum Learning*, arXiv
    2111.13651. The weights to transfer are under ``backbone.*`` and ``neck.*``; a detector with the same backbone and
    neck loads them unchanged. Parts of these that influence no pooled level, such as the convolutions of P6 and P7, are
    not trained, and checkpoints do not contain them.

    Args:
        backbone (dict): Config of a backbone that returns a list of maps, e.g. ``mmdet.ResNet``. The defaults of mmdet
            are meant for fine-tuning: set ``norm_eval=False``, ``frozen_stages=-1`` and ``zero_init_residual=False``.
        neck (dict | list[dict]): Config of a neck that returns at least two levels, e.g. ``mmdet.FPN``, or of several
            in a row.
        image_projector (dict): Maps the average-pooled last map of the backbone (C5) to the image embedding, e.g.
            ``ProjectionMLP``.
        object_projector (dict): Maps flattened 7x7 RoI features to the object embedding. Levels with different numbers
            of channels are projected to 256 first.
        image_head (dict, optional): Image loss (Eq. 1); ``ImageContrastHead`` by default.
        object_head (dict, optional): Object loss (Eq. 1) and selection of the hardest candidate; ``ObjectContrastHead``
            by default. If its ``loss_weight`` and that of ``intra_loss`` are 0, no object is embedded.
        intra_loss (dict, optional): Intra-image loss (Eq. 3); ``IntraImageLoss`` by default.
        box_jitter (dict, optional): Noise of the key boxes (Eq. 7) and state of the curriculum; ``SCSBoxJitter`` by
            default.
        object_pool (dict, optional): Arguments of :class:`ccop_mm.models.object_pool.ObjectPool`. ``strides`` are those
            of the neck's levels to pool from, by default all up to 32 px.
        queue_len (int | str): Number of negatives in the image queue. The paper prints 65,335, read as 65,536.
            ``'auto'`` fits both queues to the dataset (:func:`ccop_mm.models.queue.suggest_lengths`): tools/train.py
            before the model is built, ``SpatialCurriculumHook`` in runs that another program starts.
        object_queue_len (int | str, optional): Number of negatives in the object queue, or ``'auto'``; ``queue_len`` by
            default.
        feat_dim (int): Embedding dimension D; 128 in the paper.
        momentum (float): m of Eq. 2; 0.999 in the paper.
        key_batch (str): How the batch statistics of the key encoder are prevented from revealing positives: ``'auto'``,
            ``'shuffle'``, ``'split'``, ``'sync'`` or ``'none'``; see :func:`ccop_mm.models.key_plan.plan_keys`. Without
            batch normalization, ``'auto'`` is ``'none'``.
        bn_group (int): Images per group of batch statistics in a single process; 32 is the paper's batch size per GPU.
        channels_last (bool): Run the image encoders in channels-last memory format. Weights, and therefore optimizer
            states and checkpoints, keep their layout.
        data_preprocessor (dict, optional): Config of the data preprocessor; ``TwoViewDataPreprocessor`` by default.
        init_cfg (dict, optional): Weight initialization config.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict | list[dict],
        image_projector: dict,
        object_projector: dict,
        image_head: dict | None = None,
        object_head: dict | None = None,
        intra_loss: dict | None = None,
        box_jitter: dict | None = None,
        object_pool: dict | None = None,
        queue_len: int | str = 65536,
        object_queue_len: int | str | None = None,
        feat_dim: int = 128,
        momentum: float = 0.999,
        key_batch: str = 'auto',
        bn_group: int = 32,
        channels_last: bool = False,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        if key_batch not in KEY_BATCHES:
            raise ValueError(f'key_batch must be one of {KEY_BATCHES}, got {key_batch!r}')
        if bn_group < 1:
            raise ValueError(f'bn_group must be at least 1, got {bn_group}')
        super().__init__(
            backbone=backbone,
            neck=neck,
            data_preprocessor={'type': 'mmselfsup.TwoViewDataPreprocessor', **(data_preprocessor or {})},
            init_cfg=init_cfg,
        )
        if key_batch == 'sync' and torch.cuda.is_available() and not has_sync_batch_norm(self.backbone):
            raise ValueError("key_batch='sync' requires norm_cfg=dict(type='SyncBN') in backbone and neck")
        self.image_projector = MODELS.build(image_projector)
        self.object_projector = MODELS.build(object_projector)
        self.image_head = MODELS.build(image_head or dict(type='mmselfsup.ImageContrastHead'))
        self.object_head = MODELS.build(object_head or dict(type='mmselfsup.ObjectContrastHead'))
        self.intra_loss = MODELS.build(intra_loss or dict(type='mmselfsup.IntraImageLoss'))
        self.box_jitter = TRANSFORMS.build(box_jitter or dict(type='mmselfsup.SCSBoxJitter'))
        if not (self.box_jitter.redraw or self.box_jitter.include_original):
            raise ValueError(
                'box_jitter.redraw=False requires include_original=True; otherwise most objects have no valid positive'
            )
        if self.intra_loss.mode == 'triplet' and not self.box_jitter.include_original:
            raise ValueError(
                "intra_loss.mode='triplet' requires box_jitter.include_original=True, whose embeddings it uses"
            )
        graph = EncoderGraph(self.backbone, self.neck)
        layout = describe_layout(graph)
        strides = (object_pool or {}).get('strides') or layout.pooled_strides()
        self.object_pool = ObjectPool(**{**(object_pool or {}), 'strides': tuple(strides)})
        channels = layout.level_channels(strides)
        indices = [layout.strides.index(stride) for stride in strides]
        self.level_projector = LevelProjector(indices, channels, layout.object_channels(strides))
        #: Keys of backbone and neck that are not trained.
        self.untrained = find_untrained(graph, strides)
        for name, parameter in self.named_parameters(remove_duplicate=False):
            if name in self.untrained:
                parameter.requires_grad_(False)
        self.register_state_dict_post_hook(_leave_out_untrained)
        self.register_load_state_dict_pre_hook(_keep_untrained)
        self.image_queue = FeatureQueue(queue_len, feat_dim)
        self.object_queue = FeatureQueue(object_queue_len or queue_len, feat_dim)
        for name in IMAGE_PARTS:
            GroupedBatchNorm2d.convert(self.get_submodule(name))
        self.encoder_k = MomentumEncoder(self._encoder_parts(), momentum, without_dropout=('backbone', 'neck'))
        uses_batch_norm = any(has_batch_norm(self.get_submodule(name)) for name in IMAGE_PARTS)
        self.key_batch = 'none' if key_batch == 'auto' and not uses_batch_norm else key_batch
        self.bn_group = bn_group
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._generator = torch.Generator()
        self._warned = False

    def unsized_queues(self) -> dict[str, FeatureQueue]:
        """Returns the queues of length ``'auto'`` that have not been resized yet, by the name of their argument."""
        queues = {'queue_len': self.image_queue, 'object_queue_len': self.object_queue}
        return {name: queue for name, queue in queues.items() if queue.unsized}

    def _encoder_parts(self) -> dict[str, nn.Module]:
        return {name: self.get_submodule(name) for name in ENCODER_PARTS}

    def set_accumulation(self, first: bool, last: bool) -> None:
        """Sets the position of the next forward pass within an optimizer step with gradient accumulation.

        The key encoder is updated in the first forward pass, and the queues in the last one. Without batch
        normalization, and with the same number of objects and pairs in each forward pass, the gradients are therefore
        those of a single forward pass of the accumulated batch.

        Args:
            first (bool): Whether the query weights have changed since the previous forward pass.
            last (bool): Whether the optimizer steps after this forward pass.
        """
        self.encoder_k.enabled = first
        self.image_queue.deferred = self.object_queue.deferred = not last

    def extract_feat(self, inputs: Tensor | list[Tensor], data_samples: list | None = None) -> tuple[Tensor, ...]:
        """Computes the pooled levels, P2 to P5 of an FPN, with the query encoder.

        Args:
            inputs (Tensor | list[Tensor]): Images ``(B, 3, H, W)``, normalized; of several views, the first is used.
            data_samples (list, optional): Unused.

        Returns:
            tuple[Tensor, ...]: Per level ``(B, C, H_l, W_l)``.
        """
        image = inputs if isinstance(inputs, Tensor) else inputs[0]
        set_groups([self.backbone, self.neck], 1)
        return self.level_projector(self.neck(self.backbone(image)))

    def embed_objects(self, pyramid: tuple[Tensor, ...], boxes: Tensor, batch_index: Tensor) -> Tensor:
        """Computes object embeddings with the query encoder.

        Args:
            pyramid (tuple[Tensor, ...]): Result of :meth:`extract_feat`, each ``(B, C, H_l, W_l)``.
            boxes (Tensor): ``(N, 4)`` xyxy in pixels of the network's input.
            batch_index (Tensor): ``(N,)``, the image of each box.

        Returns:
            Tensor: ``(N, D)``, L2-normalized.
        """
        rois = self.object_pool.plan(boxes.cpu(), batch_index.cpu())
        rows, order = copy_to_device([rois.rows, rois.order], pyramid[0].device)
        return embed_objects(self, self.object_pool, pyramid, RoIs(rows, order, rois.counts), len(boxes))

    def loss(self, inputs: list[Tensor], data_samples: list) -> dict[str, Tensor]:
        """Computes the losses of one training step; mmengine sums them (Eq. 4).

        Args:
            inputs (list[Tensor]): Query and key views, each ``(B, 3, H, W)``, normalized.
            data_samples (list[SelfSupDataSample]): B samples with ``pseudo_label.boxes_q`` and ``boxes_k``, each
                ``(n, 4)`` on the CPU; row r of both is the same object, and n may be 0.

        Returns:
            dict[str, Tensor]: The losses, and for the log ``hardest_similarity`` (mean cosine similarity of queries and
            selected positives) and ``objects_per_image``.
        """
        images_q, images_k = inputs
        # Sec. 3.3, Eq. 7: jittered key boxes. Everything that depends on boxes alone is computed on the CPU.
        plan = self._plan_step(data_samples, images_k.shape[-2:]).to(images_q.device)
        objects = plan.objects
        # Sec. 3.1: embeddings of the query view.
        image_q, pyramid = self._encode_images(self, images_q, plan)
        object_q = embed_objects(self, self.object_pool, pyramid, plan.rois_q, len(objects))
        # Eq. 2: momentum update of the key encoder; embeddings of the key view and of all candidates.
        self.encoder_k.update(self._encoder_parts())
        image_k, candidates = self._encode_keys(images_k, plan)
        with torch.autocast(images_q.device.type, enabled=False):  # similarities / 0.2 need float32
            # Eq. 6: the candidate least similar to the query is the positive key.
            hardest = self.object_head.select(object_q.detach(), candidates, plan.valid)
            object_k = candidates[torch.arange(len(hardest), device=hardest.device), hardest]
            intra_inputs = dict(boxes=objects.query)
            if self.intra_loss.mode == 'triplet':  # the last candidate is the original box
                intra_inputs = dict(boxes=objects.key, keys=candidates[:, -1])
            losses = dict(
                loss_img=self.image_head(image_q, image_k, self.image_queue.keys),  # Eq. 1
                loss_obj=self.object_head(object_q, object_k, self.object_queue.keys),  # Eq. 1
                loss_intra=self.intra_loss(object_q, batch_index=objects.batch_index, **intra_inputs),  # Eq. 3
            )
        self.image_queue.enqueue(gather_rows(image_k, [len(image_k)] * len(plan.keys.object_counts)))
        self.object_queue.enqueue(gather_rows(object_k, plan.keys.object_counts))
        similarity = (object_q.detach() * object_k).sum()
        losses['hardest_similarity'] = similarity / max(len(objects), 1)
        losses['objects_per_image'] = similarity.new_full((), len(objects) / len(data_samples))
        return losses

    def _plan_step(self, data_samples: list, view_shape: tuple[int, int]) -> StepPlan:
        """Samples the jittered key boxes and plans the step on the CPU.

        The noise depends on the seed, the rank and the step only, so no generator state needs to be saved.
        """
        step = self.encoder_k.steps
        objects = ObjectBoxes.from_samples(data_samples)
        if not (self.object_head.loss_weight or self.intra_loss.loss_weight):
            objects = objects[:0]
        seeds = np.random.SeedSequence([torch.initial_seed(), get_rank(), step]).generate_state(1, np.uint64)
        self._generator.manual_seed(int(seeds[0] >> np.uint64(1)))
        candidates, valid = self.box_jitter.jitter(objects.key, view_shape, self._generator)
        plan = plan_step(
            objects,
            candidates,
            valid,
            self.object_pool,
            batch_size=len(data_samples),
            step=step,
            key_batch=self.key_batch,
            bn_group=self.bn_group,
            can_interleave=supports_interleaving(self, self.memory_format),
        )
        self._warn_of_small_groups(plan.keys.sizes)
        return plan

    def _encode_images(self, encoder: nn.Module, images: Tensor, plan: StepPlan) -> tuple[Tensor, tuple[Tensor, ...]]:
        return encode_images(encoder, images, plan.keys.sizes, plan.interleaved, self.memory_format)

    @torch.no_grad()
    def _encode_keys(self, images: Tensor, plan: StepPlan) -> tuple[Tensor, Tensor]:
        """Embeds key images ``(B, D)`` and candidates ``(N, J, D)`` with the key encoder; invalid candidates are 0."""
        keys = plan.keys
        embeddings, pyramid = self._encode_images(self.encoder_k, keys.take_images(images), plan)
        rows = embed_objects(self.encoder_k, self.object_pool, pyramid, plan.rois_k, keys.valid.numel())
        candidates = rows.view(*keys.valid.shape, rows.shape[1])  # (M * J, D) -> (M, J, D)
        return keys.restore_images(embeddings), keys.restore_objects(candidates)

    def _warn_of_small_groups(self, sizes: list[int]) -> None:
        """Warns once if few images share batch statistics."""
        if self._warned or self.key_batch == 'none' or min(sizes) >= MIN_GROUP_SIZE:
            return
        self._warned = True
        warnings.warn(
            f'only {min(sizes)} images share batch statistics (groups of {sizes}), which may be too noisy for '
            f'training; use a batch size of at least {2 * MIN_GROUP_SIZE} per process',
            stacklevel=2,
        )


def _leave_out_untrained(model: CCOP, state_dict: dict[str, Any], prefix: str, local_metadata: dict) -> None:
    """Removes the untrained tensors of both encoders from a state dict, so that no detector loads random weights."""
    for key in _untrained_keys(model, prefix):
        state_dict.pop(key, None)


def _keep_untrained(model: CCOP, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Adds the current values of the untrained tensors to a state dict that does not contain them."""
    current = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for key in _untrained_keys(model, prefix):
        state_dict.setdefault(key, current[key.removeprefix(prefix)])


def _untrained_keys(model: CCOP, prefix: str) -> list[str]:
    return [f'{prefix}{part}{name}' for part in ('', 'encoder_k.') for name in model.untrained]
