"""Makes gradient accumulation equivalent to a larger batch."""

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmselfsup.registry import HOOKS

from ccop_mm.models.ccop import CCOP
from ccop_mm.utils.model import unwrap_model


@HOOKS.register_module()
class GradientAccumulationHook(Hook):
    """Updates the key encoder and the queues of CCOP once per optimizer step.

    With ``optim_wrapper.accumulative_counts``, the optimizer steps once in several iterations. The first of them
    updates the key encoder, and the last one enqueues the keys of all. What still differs from a larger batch: batch
    statistics and the shuffling of the key batch are those of one iteration, and losses are averaged over iterations,
    which may have different numbers of objects and pairs.

    The hook has no settings and no state. Without accumulation, and for other models, it changes nothing.
    """

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Passes the position of the iteration within the optimizer step to the model."""
        model, wrapper = unwrap_model(runner.model), runner.optim_wrapper
        if isinstance(model, CCOP) and isinstance(wrapper, OptimWrapper):
            first = wrapper.inner_count % wrapper._accumulative_counts == 0
            # should_sync() refers to the backward pass that follows, and includes the last iteration of the training.
            model.set_accumulation(first, last=wrapper.should_sync())
