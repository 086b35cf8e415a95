"""The object branch computed as in the authors' released code: the baseline of step.py.

Written from a description of that code. Objects are pooled image by image and level by level; every jittered box is
embedded, valid or not; the original key boxes are embedded once more for the intra-image loss; the key encoder's
feature maps are un-shuffled; the queues are copied; all logits exist at once; Eq. 2 is applied parameter by parameter.
It uses the weights of a CCOP model with the ``reference`` preset, and both have the same losses for the same candidate
boxes (tests/benchmarks/test_step.py).
"""

import torch
import torch.nn.functional as F
from mmselfsup.structures import SelfSupDataSample
from torch import Tensor

from ccop_mm.models import CCOP
from ccop_mm.utils import boxes as box_ops


class ReferenceImplementation:
    """Computes the losses of a CCOP model with the ``reference`` preset in the manner of the authors' code.

    Args:
        model (CCOP): Model whose weights, queues and settings are used.
    """

    def __init__(self, model: CCOP) -> None:
        self.model = model
        self.pointers = dict(image_queue=0, object_queue=0)

    def loss(self, images: list[Tensor], samples: list[SelfSupDataSample]) -> dict[str, Tensor]:
        """Computes the losses of a training step; arguments and result are those of ``CCOP.loss``."""
        model, key = self.model, self.model.encoder_k
        features = model.backbone(images[0])
        pyramid = model.neck(features)
        image_q = model.image_projector(features[-1].mean(dim=(2, 3)))
        with torch.no_grad():
            self._update_key_encoder()
            order = torch.randperm(len(images[1]), device=images[1].device)
            restore = order.argsort()
            features = key.backbone(images[1][order])
            image_k = key.image_projector(features[-1].mean(dim=(2, 3)))[restore]
            # Two copies even in one process: one by gathering from all ranks, one by un-shuffling.
            pyramid_k = [torch.cat([level])[restore] for level in key.neck(features)]

        pooled_q, candidates_k, originals_k, valid_candidates = [], [], [], []
        for index, sample in enumerate(samples):
            boxes_q, boxes_k = (
                boxes.to(images[0].device) for boxes in (sample.pseudo_label.boxes_q, sample.pseudo_label.boxes_k)
            )
            pooled_q.append(self._pool(pyramid, index, boxes_q))
            with torch.no_grad():
                candidates, valid = model.box_jitter.jitter(boxes_k.cpu(), images[1].shape[-2:])
                candidates, valid = candidates.to(boxes_k), valid.to(boxes_k.device)
                rows = key.object_projector(self._pool(pyramid_k, index, candidates.flatten(0, 1)))
                candidates_k.append(rows.view(*candidates.shape[:2], -1))  # (n * J, D) -> (n, J, D)
                originals_k.append(key.object_projector(self._pool(pyramid_k, index, boxes_k)))
                valid_candidates.append(valid)
        object_q = model.object_projector(torch.cat(pooled_q))
        with torch.autocast(object_q.device.type, enabled=False):
            return self._losses(samples, image_q, image_k, object_q, candidates_k, valid_candidates, originals_k)

    def _losses(
        self,
        samples: list[SelfSupDataSample],
        image_q: Tensor,
        image_k: Tensor,
        object_q: Tensor,
        candidates_k: list[Tensor],
        valid_candidates: list[Tensor],
        originals_k: list[Tensor],
    ) -> dict[str, Tensor]:
        model, object_k, total, num_pairs = self.model, [], 0.0, 0.0
        queries = object_q.split([len(rows) for rows in originals_k])
        per_image = zip(samples, queries, candidates_k, valid_candidates, originals_k, strict=True)
        for sample, query, candidates, valid, keys in per_image:
            similarity = (query.detach()[:, None] * candidates).sum(-1).masked_fill(~valid, torch.inf)
            object_k.append(candidates[torch.arange(len(query)), similarity.argmin(1)])
            boxes = sample.pseudo_label.boxes_k.to(query.device)
            pairs = box_ops.pairwise_iou(boxes, boxes) < model.intra_loss.iou_thr
            pairs &= ~torch.eye(len(boxes), dtype=torch.bool, device=boxes.device)
            logits = query @ keys.T
            total = total + (F.relu(logits - logits.diagonal() + model.intra_loss.alpha) * pairs).sum()
            num_pairs = num_pairs + pairs.sum()
        object_k = torch.cat(object_k)
        losses = dict(
            loss_img=self._info_nce(image_q, image_k, model.image_queue.keys.clone(), model.image_head.temperature),
            loss_obj=self._info_nce(object_q, object_k, model.object_queue.keys.clone(), model.object_head.temperature),
            loss_intra=total / num_pairs,
        )
        self._enqueue('image_queue', image_k)
        self._enqueue('object_queue', object_k)
        return losses

    @staticmethod
    def _info_nce(query: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
        positive = torch.einsum('nd,nd->n', query, keys)[:, None]
        negative = torch.einsum('nd,dk->nk', query, queue)
        logits = torch.cat([positive, negative], dim=1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))

    @torch.no_grad()
    def _update_key_encoder(self) -> None:
        """Applies Eq. 2 parameter by parameter."""
        key, momentum = self.model.encoder_k, self.model.encoder_k.momentum
        for name, part in key.named_children():
            for k, q in zip(part.parameters(), self.model.get_submodule(name).parameters(), strict=True):
                k.data = k.data * momentum + q.data * (1.0 - momentum)

    def _pool(self, pyramid: list[Tensor], index: int, boxes: Tensor) -> Tensor:
        """Pools the boxes of image ``index``: ``(n, C, 7, 7)``, level by level."""
        pool, levels = self.model.object_pool, self.model.object_pool.levels(boxes)
        pooled = pyramid[0].new_zeros(len(boxes), pyramid[0].shape[1], 7, 7, dtype=torch.float32)
        for number, (layer, level) in enumerate(zip(pool.layers, pyramid, strict=True)):
            rows = (levels == number).nonzero().flatten()
            if len(rows):
                rois = torch.cat([boxes.new_full((len(rows), 1), index), boxes[rows]], dim=1)
                with torch.autocast(boxes.device.type, enabled=False):
                    pooled = pooled.index_put((rows,), layer(level.float(), rois.float()))
        return pooled

    @torch.no_grad()
    def _enqueue(self, name: str, keys: Tensor) -> None:
        queue, start = getattr(self.model, name).keys, self.pointers[name]
        stop = min(start + len(keys), queue.shape[1])  # keys beyond the end of the queue are dropped
        queue[:, start:stop] = keys[: stop - start].T
        self.pointers[name] = stop % queue.shape[1]
