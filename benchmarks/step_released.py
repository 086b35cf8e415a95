"""Object work done the way of the authors' released code: the baseline of step.py.

Own writing, from the description of what that code does: objects are pooled image by image and level by level, every
jittered crop is embedded whether its IoU counts or not, the original key boxes once more for the intra-image loss, the
key encoder's feature maps are put back in order, queues are copied, all logits exist at once, and Eq. 2 runs parameter
by parameter. It trains the weights of a CCOP with the ``reference`` preset, so that both give the same losses where
they get the same candidates (tests/benchmarks/test_step.py).
"""

import torch
import torch.nn.functional as F

from ccop_mm import boxes as box_ops


class ReleasedWay:
    """The losses of a CCOP in the ``reference`` preset, worked out the slow way.

    Args:
        model (CCOP): Gives weights, queues and settings.
    """

    def __init__(self, model):
        self.model = model
        self.pointers = dict(image_queue=0, object_queue=0)

    def loss(self, images, samples):
        """Losses of one step, as :meth:`ccop_mm.models.CCOP.loss`."""
        model, key = self.model, self.model.encoder_k
        features = model.backbone(images[0])
        pyramid = model.neck(features)
        image_q = model.image_projector(features[-1].mean(dim=(2, 3)))
        with torch.no_grad():
            self._follow()
            order = torch.randperm(len(images[1]), device=images[1].device)
            restore = order.argsort()
            features = key.backbone(images[1][order])
            image_k = key.image_projector(features[-1].mean(dim=(2, 3)))[restore]
            # Of one process: the copy that gathering from all ranks makes, and the one that puts it in order.
            pyramid_k = [torch.cat([level])[restore] for level in key.neck(features)]

        pooled_q, positives, originals, chosen_for = [], [], [], []
        for index, sample in enumerate(samples):
            boxes_q, boxes_k = (
                boxes.to(images[0].device) for boxes in (sample.pseudo_label.boxes_q, sample.pseudo_label.boxes_k)
            )
            pooled_q.append(self._pool(pyramid, index, boxes_q))
            with torch.no_grad():
                candidates, valid = model.box_jitter.jitter(boxes_k.cpu(), images[1].shape[-2:])
                candidates, valid = candidates.to(boxes_k), valid.to(boxes_k.device)
                rows = key.object_projector(self._pool(pyramid_k, index, candidates.flatten(0, 1)))
                positives.append(rows.view(*candidates.shape[:2], -1))
                originals.append(key.object_projector(self._pool(pyramid_k, index, boxes_k)))
                chosen_for.append(valid)
        object_q = model.object_projector(torch.cat(pooled_q))
        with torch.autocast(object_q.device.type, enabled=False):
            return self._losses(samples, image_q, image_k, object_q, positives, chosen_for, originals)

    def _losses(self, samples, image_q, image_k, object_q, positives, valid, originals):
        model, object_k, total, pairs = self.model, [], 0.0, 0.0
        queries = object_q.split([len(rows) for rows in originals])
        for sample, query, candidates, allowed, keys in zip(samples, queries, positives, valid, originals, strict=True):
            similarity = (query.detach()[:, None] * candidates).sum(-1).masked_fill(~allowed, torch.inf)
            object_k.append(candidates[torch.arange(len(query)), similarity.argmin(1)])
            boxes = sample.pseudo_label.boxes_k.to(query.device)
            apart = box_ops.pairwise_iou(boxes, boxes) < model.intra_loss.iou_thr
            apart &= ~torch.eye(len(boxes), dtype=torch.bool, device=boxes.device)
            logits = query @ keys.T
            total = total + (F.relu(logits - logits.diagonal() + model.intra_loss.alpha) * apart).sum()
            pairs = pairs + apart.sum()
        object_k = torch.cat(object_k)
        losses = dict(
            loss_img=self._contrast(image_q, image_k, model.image_queue.keys.clone(), model.image_head.temperature),
            loss_obj=self._contrast(object_q, object_k, model.object_queue.keys.clone(), model.object_head.temperature),
            loss_intra=total / pairs,
        )
        self._enqueue('image_queue', image_k)
        self._enqueue('object_queue', object_k)
        return losses

    @staticmethod
    def _contrast(query, keys, queue, temperature):
        positive = torch.einsum('nd,nd->n', query, keys)[:, None]
        negative = torch.einsum('nd,dk->nk', query, queue)
        logits = torch.cat([positive, negative], dim=1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))

    @torch.no_grad()
    def _follow(self):
        model, momentum = self.model, self.model.encoder_k.momentum
        for name, part in model._encoder_parts().items():
            for k, q in zip(model.encoder_k.get_submodule(name).parameters(), part.parameters(), strict=True):
                k.data = k.data * momentum + q.data * (1.0 - momentum)

    def _pool(self, pyramid, index, boxes):
        pool, levels = self.model.object_pool, self.model.object_pool.levels(boxes)
        # (n, C, 7, 7), level by level
        pooled = pyramid[0].new_zeros(len(boxes), pyramid[0].shape[1], 7, 7, dtype=torch.float32)
        for number, (layer, level) in enumerate(zip(pool.layers, pyramid, strict=True)):
            rows = (levels == number).nonzero().flatten()
            if len(rows):
                rois = torch.cat([boxes.new_full((len(rows), 1), index), boxes[rows]], dim=1)
                with torch.autocast(boxes.device.type, enabled=False):
                    pooled = pooled.index_put((rows,), layer(level.float(), rois.float()))
        return pooled

    @torch.no_grad()
    def _enqueue(self, name, keys):
        queue, start = getattr(self.model, name).keys, self.pointers[name]
        stop = min(start + len(keys), queue.shape[1])  # what does not fit is dropped
        queue[:, start:stop] = keys[: stop - start].T
        self.pointers[name] = stop % queue.shape[1]
