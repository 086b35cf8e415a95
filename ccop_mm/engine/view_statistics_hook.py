"""Tells how many pairs of views bring no object to the training."""

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmselfsup.registry import HOOKS


@HOOKS.register_module()
class ViewStatisticsHook(Hook):
    """Logs ``pairs_without_object``: the share of the epoch's pairs so far whose two views show no common object.

    Such a pair trains the image loss alone. ``SplitTwoObjectViews(min_common=1)`` draws most of them anew. Counted on
    this rank, from boxes that lie on the CPU.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        """Begins to count."""
        self._pairs = self._empty = 0

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Counts the batch and hands the share to the log."""
        labels = [sample.get('pseudo_label', ()) for sample in data_batch['data_samples']]
        labels = [label for label in labels if 'boxes_q' in label]
        if not labels:
            return  # views without boxes, of another method
        self._pairs += len(labels)
        self._empty += sum(len(label.boxes_q) == 0 for label in labels)
        runner.message_hub.update_scalar('train/pairs_without_object', self._empty / self._pairs)
