"""Warns when pre-training collapses or is misconfigured."""

import logging
import math
from collections import deque
from collections.abc import Collection, Hashable

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmselfsup.registry import HOOKS
from torch import Tensor

from ccop_mm.debug.step_dump import batch_images
from ccop_mm.evaluation.collapse import effective_rank, embedding_std
from ccop_mm.models.queue import FeatureQueue
from ccop_mm.utils.model import unwrap_model

#: Number of newest keys of a queue to check: enough for the rank of 128-dimensional embeddings, and cheap to copy.
NUM_KEYS = 1024
#: A loss within this distance of its value at chance, in nats, counts as at chance.
CHANCE_MARGIN = 0.05
#: Embeddings collapse if their effective rank falls below this fraction of its maximum so far.
RANK_DROP = 0.5
#: Embeddings of a lower effective rank have collapsed, whatever their rank was before.
MIN_RANK = 2.0
#: Maximum fraction of the keys in a full queue whose image has another key in it.
MAX_REPEATED = 0.5
#: Minimum number of objects per image in both views, on average. With 0.6, CCOP of the small study has a pointing game
#: accuracy on C3 and C4 no better than random weights; with 8 it is far better (docs/results.md). The paper reports 12.
MIN_OBJECTS = 1.0
#: Queues of the model, and the name of their embeddings in the log.
QUEUES = {'image_queue': 'image', 'object_queue': 'object'}
#: Logged losses of the embeddings.
LOSSES = {'image': 'loss_img', 'object': 'loss_obj'}


@HOOKS.register_module()
class TrainingHealthHook(Hook):
    """Logs the state of the queues and warns about problems that make a CCOP run useless without raising an error.

    Each warning is logged once, with a fix:

    - Collapse: the effective rank of the newest keys of a queue (Roy and Vetterli, *The effective rank*, EUSIPCO 2007;
      used for self-supervised embeddings by Garrido et al., *RankMe*, ICML 2023) falls below half of its maximum, or
      below 2.
    - Loss at chance: log(K + 1), where the positive is no more similar to the query than the negatives.
    - No objects: fewer than one object per image in both views on average, or no jittered box above the IoU threshold.
    - Repeated images: most keys of the image queue belong to images with several keys in it, so that most negatives are
      other keys of the same image.

    All checks take place every ``interval`` iterations, on the logged scalars and the newest keys; the other iterations
    do not synchronize with the device. For each queue the hook logs the effective rank of the newest keys, their
    standard deviation and the age of the oldest key in iterations (``train/rank_image``, ``train/embedding_std_image``
    and ``train/age_image``), which ``tools/analysis_tools/training_report.py`` plots.

    Args:
        interval (int): Iterations between two checks.
        patience (float): Fraction of the training before loss and rank are checked, because both are at chance in the
            beginning. They are not checked before the queue was filled once, either.
        window (int): Number of consecutive checks that must fail before a warning.
    """

    # Before the logger hook (BELOW_NORMAL), whose log line includes the scalars.
    priority = 'NORMAL'

    def __init__(self, interval: int = 50, patience: float = 0.05, window: int = 3) -> None:
        if interval < 1 or window < 1 or not 0 <= patience <= 1:
            raise ValueError(
                'interval and window must be at least 1 and patience must be in [0, 1], '
                f'got interval={interval}, window={window}, patience={patience}'
            )
        self.interval = interval
        self.patience = patience
        self.window = window
        self._warned: set[str] = set()
        self._ranks: dict[str, list[float]] = {}
        self._recent: dict[str, deque[bool]] = {}
        self._image_ids: deque[Hashable] | None = None

    def before_train(self, runner: Runner) -> None:
        """Finds the queues of the model; without any, only the logged scalars are checked."""
        model = unwrap_model(runner.model)
        self._queues = {
            QUEUES[name]: module
            for name, module in model.named_children()
            if name in QUEUES and isinstance(module, FeatureQueue)
        }
        if 'image' in self._queues:
            # Only the keys of this rank.
            self._image_ids = deque(maxlen=max(1, len(self._queues['image']) // get_world_size()))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Records the image ids of the batch; runs all checks every ``interval`` iterations."""
        if self._image_ids is not None and isinstance(data_batch, dict) and data_batch.get('data_samples'):
            ids = [image['img_id'] for image in batch_images(data_batch)]
            self._image_ids.extend(image_id for image_id in ids if image_id is not None)
        if not self.every_n_train_iters(runner, self.interval):
            return
        self._check_objects(runner)
        self._check_repeated_images(runner)
        for name in self._queues:
            self._check_keys(runner, name)
            self._check_loss(runner, name)

    def _is_due(self, runner: Runner, name: str) -> bool:
        """Returns whether the queue was filled once and the ``patience`` period is over."""
        enqueued = (runner.iter + 1) * self._keys_per_iteration(runner, name)
        return runner.iter + 1 >= self.patience * runner.max_iters and enqueued >= len(self._queues[name])

    def _keys_per_iteration(self, runner: Runner, name: str) -> float:
        images = (runner.train_dataloader.batch_size or 1) * get_world_size()
        return images * (1 if name == 'image' else self._recent_mean(runner, 'objects_per_image') or 0)

    def _check_keys(self, runner: Runner, name: str) -> None:
        keys = newest_keys(self._queues[name], NUM_KEYS)
        rank = effective_rank(keys).item()
        runner.message_hub.update_scalar(f'train/rank_{name}', rank)
        runner.message_hub.update_scalar(f'train/embedding_std_{name}', embedding_std(keys).item())
        per_iteration = self._keys_per_iteration(runner, name)
        if per_iteration:
            runner.message_hub.update_scalar(f'train/age_{name}', len(self._queues[name]) / per_iteration)
        if not self._is_due(runner, name):
            return
        ranks = self._ranks.setdefault(name, [])
        ranks.append(rank)
        recent = ranks[-self.window :]
        if len(recent) == self.window and max(recent) < max(MIN_RANK, RANK_DROP * max(ranks)):
            self._warn(
                runner,
                f'rank_{name}',
                f'{name} embeddings collapse: the effective rank of the {len(keys)} newest keys is {rank:.1f}, its '
                f'maximum was {max(ranks):.1f}; lower the learning rate, add a warm-up, or start from an earlier '
                'checkpoint',
            )

    def _check_loss(self, runner: Runner, name: str) -> None:
        loss = self._recent_mean(runner, LOSSES[name])
        if loss is None or not self._is_due(runner, name):
            return
        chance = math.log(len(self._queues[name]) + 1)
        if self._fails_repeatedly(f'loss_{name}', loss >= chance - CHANCE_MARGIN):
            self._warn(
                runner,
                f'loss_{name}',
                f'{LOSSES[name]} is at chance: {loss:.2f}, log({len(self._queues[name])} + 1) = {chance:.2f}, so '
                'positives are no more similar than negatives; lower the learning rate, or check that both views show '
                'the same image (tools/analysis_tools/curriculum.py plots the boxes)',
            )

    def _check_objects(self, runner: Runner) -> None:
        objects, acceptance = self._recent_mean(runner, 'objects_per_image'), self._recent_mean(runner, 'acceptance')
        if self._fails_repeatedly('objects_per_image', objects is not None and objects < MIN_OBJECTS):
            self._warn(
                runner,
                'objects_per_image',
                f'only {objects or 0:.2f} objects per image are in both views with a valid candidate, so almost only '
                'the image loss trains; generate more boxes, or check the proposals '
                '(tools/analysis_tools/curriculum.py), the minimum box area in a view, and num_proposals',
            )
        if self._fails_repeatedly('acceptance', acceptance == 0):
            self._warn(
                runner,
                'acceptance',
                'acceptance is 0: no jittered box reaches the IoU threshold, so all candidates are rejected; reduce '
                'box_jitter.noise, lower box_jitter.min_iou, or set redraw=True',
            )

    def _check_repeated_images(self, runner: Runner) -> None:
        ids = self._image_ids
        if ids is None or ids.maxlen is None or len(ids) < ids.maxlen or ids.maxlen < 2:
            return
        if repeated_fraction(ids) > MAX_REPEATED:
            images, length = len(set(ids)), len(self._queues['image'])
            self._warn(
                runner,
                'ids',
                f'the image queue repeats the same images: its {length} keys belong to {images} images'
                f'{" per rank" if get_world_size() > 1 else ""}, so most negatives are other keys of the same image; '
                f"set model.queue_len='auto' or {max(1, images // 2)}, or check the sampler",
            )

    def _fails_repeatedly(self, key: str, failed: bool) -> bool:
        """Records the result of a check; returns whether the last ``window`` results are failures."""
        recent = self._recent.setdefault(key, deque(maxlen=self.window))
        recent.append(failed)
        return len(recent) == self.window and all(recent)

    def _recent_mean(self, runner: Runner, name: str) -> float | None:
        """Returns the mean of a logged scalar since the last check, or None if it is not logged."""
        buffer = runner.message_hub.log_scalars.get(f'train/{name}')
        if buffer is None or not len(buffer.data[0]):
            return None
        return float(buffer.mean(min(self.interval, len(buffer.data[0]))))

    def _warn(self, runner: Runner, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            runner.logger.log(logging.WARNING, f'iteration {runner.iter + 1}: {message} (logged once)')


def newest_keys(queue: FeatureQueue, limit: int) -> Tensor:
    """Returns the most recently enqueued keys, newest first, without synchronizing with the device.

    Args:
        queue (FeatureQueue): Queue of K keys.
        limit (int): Maximum number of keys.

    Returns:
        Tensor: ``(min(limit, K), D)``.
    """
    length = len(queue)
    slots = queue.pointer - 1 - torch.arange(min(limit, length), device=queue.keys.device)
    return queue.keys.index_select(1, slots % length).T


def repeated_fraction(ids: Collection[Hashable]) -> float:
    """Returns the fraction of ids that occurred earlier in the sequence: 0 if all n differ, (n - 1) / n if all are
    equal.
    """
    return 1 - len(set(ids)) / len(ids)
