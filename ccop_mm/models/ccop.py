"""Curricular Contrastive Object-level Pre-training."""

import warnings

import numpy as np
import torch
from mmengine.dist import get_rank
from mmselfsup.models import BaseModel
from mmselfsup.registry import MODELS, TRANSFORMS
from torch import Tensor, nn

from ccop_mm.models.host_copy import copy_to_device
from ccop_mm.models.key_plan import KEY_BATCHES, KeyPlan, gather_rows, plan_keys
from ccop_mm.models.momentum import MomentumEncoder
from ccop_mm.models.object_pool import ObjectPool, RoIs
from ccop_mm.models.queue import FeatureQueue
from ccop_mm.models.split_batch_norm import (
    SplitBatchNorm2d,
    can_split,
    deinterleave,
    interleave,
    set_groups,
    takes_global_statistics,
)

#: The parts of the query encoder that the key encoder follows.
ENCODER_PARTS = ('backbone', 'neck', 'image_projector', 'object_projector')

#: Those that work on images, and take batch statistics if any do.
IMAGE_PARTS = ENCODER_PARTS[:3]

#: Below this many images, batch statistics are too noisy to train with (a rule of thumb; the paper has 32 per GPU).
FEW_IMAGES = 8

#: Candidates whose 7x7 features exist at once: 51 MB in float32 at 256 channels, where 256 photos would make 1.5 GB.
POOLED_AT_ONCE = 1024


@MODELS.register_module()
class CCOP(BaseModel):
    """CCOP: contrast between images, between objects, and between the objects of one image.

    Yang, Huang, Crowley: *Contrastive Object-level Pre-training with Spatial Noise Curriculum Learning*, arXiv
    2111.13651. The weights that transfer lie under ``backbone.*`` and ``neck.*``; an mmdet detector whose FPN starts at
    C2 takes them as they are.

    Args:
        backbone (dict): Gives C2 to C5, e.g. ``mmdet.ResNet``. Its defaults are for loaded weights: pre-train with
            ``norm_eval=False``, ``frozen_stages=-1`` and ``zero_init_residual=False``.
        neck (dict): Gives P2 to P5, e.g. ``mmdet.FPN``.
        image_projector (dict): From average-pooled C5 to the image embedding, e.g. ``ProjectionMLP``.
        object_projector (dict): From flattened 7x7 RoI features to the object embedding.
        image_head (dict): Eq. 1 for images.
        object_head (dict): Eq. 1 for objects, and the choice of the hardest candidate.
        intra_loss (dict): Eq. 3.
        box_jitter (dict): Eq. 7 and the curriculum's state.
        object_pool (dict, optional): Arguments of :class:`ccop_mm.models.object_pool.ObjectPool`.
        queue_len (int | str): Negatives in the image queue. The paper prints 65,335, read as 65,536. ``'auto'`` sizes
            both queues to the data set; tools/train.py puts numbers in its place
            (:func:`ccop_mm.models.queue.suggest_lengths`).
        object_queue_len (int, optional): Negatives in the object queue; as the image queue by default.
        feat_dim (int): Size of an embedding; the paper uses 128.
        momentum (float): m of Eq. 2; the paper uses 0.999.
        key_batch (str): How the key encoder's batch statistics are kept from telling positives:
            ``'auto'``, ``'shuffle'``, ``'split'``, ``'sync'`` or ``'none'``; see
            :func:`ccop_mm.models.key_plan.plan_keys`.
        bn_group (int): Images per group of batch statistics in one process; 32 is the paper's batch per GPU.
        channels_last (bool): Run the image encoders in channels-last memory format, which matrix units of GPUs work in.
            Weights, and with them the optimizer's state and checkpoints, keep their layout.
        data_preprocessor (dict, optional): ``TwoViewDataPreprocessor`` by default.
        init_cfg (dict, optional): Weight initialization.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        image_projector: dict,
        object_projector: dict,
        image_head: dict | None = None,
        object_head: dict | None = None,
        intra_loss: dict | None = None,
        box_jitter: dict | None = None,
        object_pool: dict | None = None,
        queue_len: int | str = 65536,
        object_queue_len: int | None = None,
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
        if queue_len == 'auto':
            raise ValueError("queue_len='auto' needs the data set: tools/train.py resolves it; elsewhere give a number")
        if bn_group < 1:
            raise ValueError(f'bn_group must be at least 1, got {bn_group}')
        super().__init__(
            backbone=backbone,
            neck=neck,
            data_preprocessor={'type': 'mmselfsup.TwoViewDataPreprocessor', **(data_preprocessor or {})},
            init_cfg=init_cfg,
        )
        if key_batch == 'sync' and torch.cuda.is_available() and not takes_global_statistics(self.backbone):
            raise ValueError("key_batch='sync' needs norm_cfg=dict(type='SyncBN') in backbone and neck")
        self.image_projector = MODELS.build(image_projector)
        self.object_projector = MODELS.build(object_projector)
        self.image_head = MODELS.build(image_head or dict(type='mmselfsup.ImageContrastHead'))
        self.object_head = MODELS.build(object_head or dict(type='mmselfsup.ObjectContrastHead'))
        self.intra_loss = MODELS.build(intra_loss or dict(type='mmselfsup.IntraImageLoss'))
        self.box_jitter = TRANSFORMS.build(box_jitter or dict(type='mmselfsup.SCSBoxJitter'))
        if not (self.box_jitter.redraw or self.box_jitter.include_original):
            raise ValueError(
                'box_jitter.redraw=False needs include_original=True: else most objects have no valid positive'
            )
        if self.intra_loss.mode == 'triplet' and not self.box_jitter.include_original:
            raise ValueError(
                "intra_loss.mode='triplet' needs box_jitter.include_original=True: it uses those embeddings"
            )
        self.object_pool = ObjectPool(**(object_pool or {}))
        self.image_queue = FeatureQueue(queue_len, feat_dim)
        self.object_queue = FeatureQueue(object_queue_len or queue_len, feat_dim)
        for name in IMAGE_PARTS:
            SplitBatchNorm2d.convert(self.get_submodule(name))
        self.encoder_k = MomentumEncoder(self._encoder_parts(), momentum)
        self.key_batch = key_batch
        self.bn_group = bn_group
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._generator = torch.Generator()
        self._warned = False

    def _encoder_parts(self) -> dict[str, nn.Module]:
        return {name: self.get_submodule(name) for name in ENCODER_PARTS}

    def extract_feat(self, inputs: Tensor | list[Tensor], data_samples=None) -> tuple[Tensor, ...]:
        """The query encoder's pyramid P2 to P5 of an image batch ``(B, 3, H, W)``, or of the first of several views."""
        image = inputs if isinstance(inputs, Tensor) else inputs[0]
        set_groups([self.backbone, self.neck], 1)
        return self.neck(self.backbone(image))

    def embed_objects(self, pyramid: tuple[Tensor, ...], boxes: Tensor, batch_index: Tensor) -> Tensor:
        """Embeddings of boxes, by the query encoder.

        Args:
            pyramid (tuple[Tensor, ...]): P2 to P5, each ``(B, C, H, W)``.
            boxes (Tensor): ``(N, 4)`` in pixels of the network's input.
            batch_index (Tensor): ``(N,)``, the image of each box.

        Returns:
            Tensor: ``(N, D)``, L2-normalized.
        """
        rois = self.object_pool.plan(boxes.cpu(), batch_index.cpu())
        rows, order = copy_to_device([rois.rows, rois.order], pyramid[0].device)
        return self._embed_objects(self, pyramid, RoIs(rows, order, rois.counts), len(boxes))

    def _embed_objects(self, encoder: nn.Module, pyramid: tuple[Tensor, ...], rois: RoIs, length: int) -> Tensor:
        """Embeddings of planned boxes, by either encoder: ``(length, D)``, 0 in rows that ``rois.order`` leaves out."""
        # With gradients the features must all be kept anyway.
        parts = [rois] if torch.is_grad_enabled() else rois.split(POOLED_AT_ONCE)
        pyramid = self.object_pool.readable(pyramid)
        rows = [encoder.object_projector(self.object_pool(pyramid, part)) for part in parts]  # sorted by level
        rows = torch.cat(rows) if len(rows) > 1 else rows[0]
        return rows.new_zeros(length, rows.shape[1]).index_copy(0, rois.order, rows)

    def _groups_of_one_pass(self, sizes: list[int]) -> int:
        """Groups of batch statistics that one pass over all images can keep apart; 1 if it cannot."""
        # It needs contiguous (B, C, H, W) memory: in channels-last, to fold groups into channels is to copy.
        contiguous = self.memory_format == torch.contiguous_format
        equal = len(set(sizes)) == 1
        return len(sizes) if equal and contiguous and all(can_split(getattr(self, name)) for name in IMAGE_PARTS) else 1

    def _encode(
        self, encoder: nn.Module, images: Tensor, sizes: list[int], groups: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Image embeddings ``(B, D)`` and the pyramid, with batch statistics of their own for each group of images.

        Where all ``groups`` go in one pass (:meth:`_groups_of_one_pass`), the pyramid stays interleaved, because to put
        it in order is to copy it: image b lies at ``deinterleave(torch.arange(B), groups)[b]``.
        """
        images = images.contiguous(memory_format=self.memory_format)
        set_groups([getattr(encoder, name) for name in IMAGE_PARTS], groups)
        if groups == len(sizes):
            embeddings, pyramid = self._encode_images(encoder, interleave(images, groups))
            return deinterleave(embeddings, groups), pyramid
        encoded = [self._encode_images(encoder, group) for group in images.split(sizes)]
        embeddings, pyramids = zip(*encoded, strict=True)
        return torch.cat(embeddings), tuple(torch.cat(level) for level in zip(*pyramids, strict=True))

    @staticmethod
    def _encode_images(encoder: nn.Module, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Image embeddings and the pyramid of a batch."""
        features = encoder.backbone(images)
        return encoder.image_projector(features[-1].mean(dim=(2, 3))), tuple(encoder.neck(features))

    def loss(self, inputs: list[Tensor], data_samples: list) -> dict[str, Tensor]:
        """One training step's losses (Eq. 4 is their plain sum, which mmengine makes) and what is worth watching.

        Args:
            inputs (list[Tensor]): Query and key views, each ``(B, 3, H, W)``, normalized.
            data_samples (list[SelfSupDataSample]): B samples whose ``pseudo_label`` holds ``boxes_q`` and ``boxes_k``,
                both ``(n, 4)`` on the CPU, row r of the one being the same object as row r of the other; n may be 0.

        Returns:
            dict[str, Tensor]: ``loss_img``, ``loss_obj``, ``loss_intra``; ``hardest_similarity`` (mean similarity of
            the chosen positives to their queries) and ``objects_per_image``.
        """
        images_q, images_k = inputs
        labels = [sample.pseudo_label for sample in data_samples]
        boxes_q = torch.cat([label.boxes_q for label in labels]).cpu()
        boxes_k = torch.cat([label.boxes_k for label in labels]).cpu()
        counts = torch.tensor([len(label.boxes_q) for label in labels])
        batch_index = torch.repeat_interleave(torch.arange(len(labels)), counts)

        step = self.encoder_k.steps
        seeds = np.random.SeedSequence([torch.initial_seed(), get_rank(), step]).generate_state(1, np.uint64)
        self._generator.manual_seed(int(seeds[0] >> np.uint64(1)))
        candidates, valid = self.box_jitter.jitter(boxes_k, images_k.shape[-2:], self._generator)
        usable = valid.any(1)  # a key box without area in its view has no candidate: that object is left out
        candidates, valid, boxes_q, boxes_k, batch_index = (
            tensor[usable] for tensor in (candidates, valid, boxes_q, boxes_k, batch_index)
        )
        plan = plan_keys(candidates, batch_index, len(images_k), self.key_batch, step, self.bn_group, valid)
        self._warn_of_small_groups(plan.sizes)
        # All that depends on boxes is known here, on the host; from now on nobody waits for the device.
        device = images_q.device
        groups = self._groups_of_one_pass(plan.sizes)
        places = deinterleave(torch.arange(len(images_q)), groups)  # (B,): where each image lies in its pyramid
        rois_q = self.object_pool.plan(boxes_q, places[batch_index])
        rois_k = self._plan_candidates(plan, places)
        moved = copy_to_device(
            [valid, boxes_q, boxes_k, batch_index, rois_q.rows, rois_q.order, rois_k.rows, rois_k.order]
            + [plan.images, plan.image_restore, plan.object_restore],
            device,
        )
        valid, boxes_q, boxes_k, batch_index = moved[:4]
        rois_q.rows, rois_q.order, rois_k.rows, rois_k.order = moved[4:8]
        plan.images, plan.image_restore, plan.object_restore = moved[8:]

        image_q, pyramid = self._encode(self, images_q, plan.sizes, groups)
        object_q = self._embed_objects(self, pyramid, rois_q, len(boxes_q))
        image_k, object_candidates = self._encode_keys(images_k, plan, rois_k, groups)

        with torch.autocast(device.type, enabled=False):
            hardest = self.object_head.select(object_q.detach(), object_candidates, valid)
        object_k = object_candidates[torch.arange(len(hardest), device=device), hardest]

        if self.intra_loss.mode == 'triplet':  # the unjittered boxes are the last candidates: nothing is pooled twice
            intra_inputs = dict(boxes=boxes_k, keys=object_candidates[:, -1])
        else:
            intra_inputs = dict(boxes=boxes_q)
        with torch.autocast(device.type, enabled=False):  # similarities over a temperature of 0.2 need float32
            losses = dict(
                loss_img=self.image_head(image_q, image_k, self.image_queue.keys),
                loss_obj=self.object_head(object_q, object_k, self.object_queue.keys),
                loss_intra=self.intra_loss(object_q, batch_index=batch_index, **intra_inputs),
            )
        self.image_queue.enqueue(gather_rows(image_k, [len(image_k)] * len(plan.object_counts)))
        self.object_queue.enqueue(gather_rows(object_k, plan.object_counts))
        similarity = (object_q.detach() * object_k).sum()
        losses['hardest_similarity'] = similarity / max(len(object_k), 1)
        losses['objects_per_image'] = similarity.new_full((), len(object_k) / len(labels))
        return losses

    def _plan_candidates(self, plan: KeyPlan, places: Tensor) -> RoIs:
        """The valid candidates, sorted by level, in images that lie at ``places``; ``order`` counts all M * J."""
        kept = plan.valid.flatten().nonzero().flatten()
        # (M, J, 4) -> (M * J, 4) -> the valid ones; every candidate lies in its object's image
        image = places[plan.batch_index].repeat_interleave(plan.boxes.shape[1])
        rois = self.object_pool.plan(plan.boxes.flatten(0, 1)[kept], image[kept])
        return RoIs(rois.rows, kept[rois.order], rois.counts)

    @torch.no_grad()
    def _encode_keys(self, images: Tensor, plan: KeyPlan, rois: RoIs, groups: int) -> tuple[Tensor, Tensor]:
        """Moves the key encoder on and embeds with it: images ``(B, D)`` and candidates ``(N, J, D)``, 0 if invalid."""
        self.encoder_k.update(self._encoder_parts())
        embeddings, pyramid = self._encode(self.encoder_k, plan.take_images(images), plan.sizes, groups)
        rows = self._embed_objects(self.encoder_k, pyramid, rois, plan.valid.numel())
        objects = rows.view(*plan.valid.shape, rows.shape[1])  # (M * J, D) -> (M, J, D)
        return plan.restore_images(embeddings), plan.restore_objects(objects)

    def _warn_of_small_groups(self, sizes: list[int]) -> None:
        if self._warned or self.key_batch == 'none' or min(sizes) >= FEW_IMAGES:
            return
        self._warned = True
        warnings.warn(
            f'only {min(sizes)} images share batch statistics (groups of {sizes}); their noise may keep the losses '
            f'from falling: use a batch of at least {2 * FEW_IMAGES} images per process',
            stacklevel=2,
        )
