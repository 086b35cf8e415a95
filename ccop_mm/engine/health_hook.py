"""Says aloud when pre-training collapses or is misused."""

import logging
import math
from collections import deque

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmselfsup.registry import HOOKS
from torch import Tensor, nn

from ccop_mm.engine.step_dump import images_of
from ccop_mm.errors import InputError
from ccop_mm.evaluation.collapse import effective_rank, embedding_spread

#: The newest keys of a queue that are looked at: enough for the rank of 128 numbers, little to copy.
NUM_KEYS = 1024
#: A loss within so much of its value at chance has learned nothing; in nats.
CHANCE_MARGIN = 0.05
#: A rank that has lost so much of its best is falling.
RANK_DROP = 0.5
#: Embeddings that use fewer directions than this have collapsed, whatever they used before.
MIN_RANK = 2.0
#: The share of a full queue's keys that may be of a photo that has another key in it.
MAX_REPEATED = 0.5
#: Fewer objects of a photo than this in both views on average: with 0.6 the small study's CCOP points at objects on C3
#: and C4 no better than random weights do, with 8 far better (docs/results.md). The paper has 12.
FEW_OBJECTS = 1.0
QUEUES = {'image_queue': 'image', 'object_queue': 'object'}


@HOOKS.register_module()
class TrainingHealthHook(Hook):
    """Warns, once each and with the cure, of what makes a CCOP run worthless without an error:

    - embeddings that collapse: the effective rank of the newest keys of a queue halves, or is under 2;
    - a loss at chance, log(K + 1), at which the positive is no nearer than the negatives;
    - less than one object in both views of a photo on average, or no jittered box that reaches the IoU floor;
    - a queue that is full of the same images, so that most negatives are a photo's own keys.

    Every ``interval`` iterations it reads what has been logged by then, and the keys; nothing waits for the device in
    between. The rank and the spread of the keys and the age of the oldest, in iterations, are logged
    (``train/rank_image`` and so on), for ``tools/inspect/training_report.py``.

    Args:
        interval (int): Iterations between two looks.
        patience (float): Share of the training before the first judgment of loss and rank, for both are at chance in
            the beginning; at least a whole filling of the queue is awaited as well.
        window (int): Looks that must agree.
    """

    # Before the logger (BELOW_NORMAL), so that the numbers stand in its line.
    priority = 'NORMAL'

    def __init__(self, interval: int = 50, patience: float = 0.05, window: int = 3) -> None:
        if interval < 1 or window < 1 or not 0 <= patience <= 1:
            raise InputError(
                'TrainingHealthHook: interval and window are at least 1 and patience is in [0, 1], '
                f'got {interval}, {window} and {patience}'
            )
        self.interval = interval
        self.patience = patience
        self.window = window
        self._said = set()
        self._ranks: dict[str, list[float]] = {}
        self._recent: dict[str, deque] = {}
        self._filled: dict[str, float] = {}
        self._ids: deque | None = None

    def before_train(self, runner: Runner) -> None:
        """Finds the queues; without any the hook looks at the losses alone."""
        model: nn.Module = runner.model
        while is_model_wrapper(model):
            model = model.module
        self._queues = {QUEUES[name]: module for name, module in model.named_children() if name in QUEUES}
        if 'image' in self._queues:
            # Of this rank's share of the queue.
            self._ids = deque(maxlen=max(1, len(self._queues['image']) // get_world_size()))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Notes the photos' ids; looks at all the rest every ``interval`` iterations."""
        if self._ids is not None and isinstance(data_batch, dict) and data_batch.get('data_samples'):
            ids = [image['img_id'] for image in images_of(data_batch)]
            self._ids.extend(name for name in ids if name is not None)
        if not self.every_n_train_iters(runner, self.interval):
            return
        self._look_at_objects(runner)
        self._look_at_ids(runner)
        for name in self._queues:
            self._look_at_keys(runner, name)
            self._look_at_loss(runner, name)

    def _due(self, runner: Runner, name: str) -> bool:
        """Whether the queue has been filled once and the beginning is over."""
        enqueued = (runner.iter + 1) * self._keys_per_step(runner, name)
        return runner.iter + 1 >= self.patience * runner.max_iters and enqueued >= len(self._queues[name])

    def _keys_per_step(self, runner: Runner, name: str) -> float:
        photos = (runner.train_dataloader.batch_size or 1) * get_world_size()
        return photos * (1 if name == 'image' else self._mean(runner, 'objects_per_image') or 0)

    def _look_at_keys(self, runner: Runner, name: str) -> None:
        keys = newest_keys(self._queues[name], NUM_KEYS)
        rank, spread = effective_rank(keys).item(), embedding_spread(keys).item()
        runner.message_hub.update_scalar(f'train/rank_{name}', rank)
        runner.message_hub.update_scalar(f'train/spread_{name}', spread)
        per_step = self._keys_per_step(runner, name)
        if per_step:
            runner.message_hub.update_scalar(f'train/age_{name}', len(self._queues[name]) / per_step)
        if not self._due(runner, name):
            return
        ranks = self._ranks.setdefault(name, [])
        ranks.append(rank)
        recent = sorted(ranks[-self.window :])
        if len(recent) < self.window:
            return
        if recent[-1] < max(MIN_RANK, RANK_DROP * max(ranks)):
            self._warn(
                runner,
                f'rank_{name}',
                f'{name} embeddings collapse: the {min(NUM_KEYS, len(self._queues[name]))} newest keys use '
                f'{rank:.1f} directions, {max(ranks):.1f} at best; lower the learning rate, warm it up, or start '
                'from an earlier checkpoint',
            )

    def _look_at_loss(self, runner: Runner, name: str) -> None:
        loss = self._mean(runner, {'image': 'loss_img', 'object': 'loss_obj'}[name])
        if loss is None or not self._due(runner, name):
            return
        chance = math.log(len(self._queues[name]) + 1)
        recent = self._recent.setdefault(f'loss_{name}', deque(maxlen=self.window))
        recent.append(loss >= chance - CHANCE_MARGIN)
        if len(recent) == self.window and all(recent):
            self._warn(
                runner,
                f'loss_{name}',
                f'the {name} loss is at chance, {loss:.2f} of log({len(self._queues[name])} + 1) = {chance:.2f}: '
                'positives are no nearer than negatives; lower the learning rate, or check that both views show the '
                'same photo (tools/inspect/curriculum.py shows the boxes)',
            )

    def _look_at_objects(self, runner: Runner) -> None:
        objects, acceptance = self._mean(runner, 'objects_per_image'), self._mean(runner, 'acceptance')
        for key, bad, problem in (
            (
                'objects_per_image',
                objects is not None and objects < FEW_OBJECTS,
                f'only {objects or 0:.2f} objects of a photo were in both views with a valid candidate, so the image '
                'loss trains nearly alone; make more boxes, or check the proposals (tools/inspect/curriculum.py), the '
                'least area of a box in a view, and num_proposals',
            ),
            (
                'acceptance',
                acceptance == 0,
                'no jittered box reached the IoU floor, so all candidates were rejected; narrow box_jitter.noise, '
                'lower box_jitter.min_iou, or set redraw=True',
            ),
        ):
            recent = self._recent.setdefault(key, deque(maxlen=self.window))
            recent.append(bad)
            if len(recent) == self.window and all(recent):
                self._warn(runner, key, problem)

    def _look_at_ids(self, runner: Runner) -> None:
        if self._ids is None or len(self._ids) < self._ids.maxlen or self._ids.maxlen < 2:
            return
        repeated = repeated_share(self._ids)
        if repeated > MAX_REPEATED:
            photos, length = len(set(self._ids)), len(self._queues['image'])
            self._warn(
                runner,
                'ids',
                f'the image queue is full of the same images: its {length} keys are of {photos} photos'
                f'{" a rank" if get_world_size() > 1 else ""}, so most negatives are other keys of the same photo; set '
                f"model.queue_len='auto' or {max(1, photos // 2)}, or check the sampler",
            )

    def _mean(self, runner: Runner, name: str) -> float | None:
        """Mean of what was logged since the last look, from the host's memory; None if it is not logged."""
        buffer = runner.message_hub.log_scalars.get(f'train/{name}')
        if buffer is None or not len(buffer.data[0]):
            return None
        return float(buffer.mean(min(self.interval, len(buffer.data[0]))))

    def _warn(self, runner: Runner, key: str, message: str) -> None:
        if key not in self._said:
            self._said.add(key)
            runner.logger.log(logging.WARNING, f'iteration {runner.iter + 1}: {message} (said once)')


def newest_keys(queue: nn.Module, limit: int) -> Tensor:
    """The ``(n, D)`` keys that were enqueued last, n at most ``limit``; without waiting for the device."""
    length = len(queue)
    slots = queue.pointer - 1 - torch.arange(min(limit, length), device=queue.keys.device)
    return queue.keys.index_select(1, slots % length).T


def repeated_share(ids) -> float:
    """The share of a sequence's entries that have an equal before them; 0 for none, (n - 1) / n where all are equal."""
    return 1 - len(set(ids)) / len(ids)
