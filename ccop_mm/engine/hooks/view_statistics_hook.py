"""Logs how many pairs of views contribute no object to the training."""

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmselfsup.registry import HOOKS

#: Key of the message hub, and thus of checkpoints, for the epoch's number of pairs so far and of pairs without object.
COUNTS = 'pairs_without_object_counts'


@HOOKS.register_module()
class ViewStatisticsHook(Hook):
    """Logs ``pairs_without_object``: the fraction of the epoch's pairs so far whose two views share no object.

    Such a pair trains only the image loss. ``SplitTwoObjectViews(min_common=1)`` resamples most of these pairs. Pairs
    are counted on this rank, from boxes that are stored on the CPU.
    """

    def __init__(self) -> None:
        self._resumed = (0, 0)

    def before_train(self, runner: Runner) -> None:
        """Restores the counts if the run was resumed within an epoch."""
        if runner.iter > 0:
            self._resumed = runner.message_hub.get_info(COUNTS) or (0, 0)

    def before_train_epoch(self, runner: Runner) -> None:
        """Resets the counts."""
        self._num_pairs, self._num_empty = self._resumed
        self._resumed = (0, 0)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Counts the pairs of the batch and logs the fraction."""
        assert data_batch is not None
        labels = [sample.get('pseudo_label', ()) for sample in data_batch['data_samples']]
        labels = [label for label in labels if 'boxes_q' in label]
        if not labels:
            return  # views without boxes, from another method
        self._num_pairs += len(labels)
        self._num_empty += sum(len(label.boxes_q) == 0 for label in labels)
        runner.message_hub.update_info(COUNTS, (self._num_pairs, self._num_empty))
        runner.message_hub.update_scalar('train/pairs_without_object', self._num_empty / self._num_pairs)

    def after_train_epoch(self, runner: Runner) -> None:
        """Removes the counts from the checkpoints that are saved at the end of the epoch."""
        runner.message_hub.pop_info(COUNTS)
