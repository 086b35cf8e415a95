"""Compiles the image encoders of a run."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmselfsup.registry import HOOKS

from ccop_mm.errors import InputError


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles parts of the model with torch.compile before training.

    In place (``nn.Module.compile``): names in checkpoints stay as they are, which ``torch.compile(module)`` would
    change. What builds the model from the same config without training it (probes, ``tools/replay.py``) runs it
    uncompiled. The parts with objects are left out: their sizes change from step to step, and each new one could
    compile again.

    For each size of batch by itself, for a training has one: from the second on torch would compile once for all sizes,
    with symbols in their place, which takes minutes where the groups of a batch go in one pass
    (:class:`ccop_mm.models.split_batch_norm.SplitBatchNorm2d`). Set ``dynamic`` to choose otherwise.

    Args:
        parts (Sequence[str]): Modules of the model by name; CCOP's image encoders by default.
        **options: Of ``torch.compile``, such as ``backend`` or ``mode``.
    """

    def __init__(
        self, parts: tuple[str, ...] = ('backbone', 'neck', 'encoder_k.backbone', 'encoder_k.neck'), **options
    ) -> None:
        self.parts = tuple(parts)
        self.options = {'dynamic': False, **options}

    def before_train(self, runner: Runner) -> None:
        """Marks the parts; each is compiled when it is first called."""
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        for name in self.parts:
            try:
                part = model.get_submodule(name)
            except AttributeError as error:
                raise InputError(f'CompileHook: {type(model).__name__} has no part {name}; name others') from error
            part.compile(**self.options)
