"""Compiles the image encoders of a model."""

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmselfsup.registry import HOOKS

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.model import unwrap_model


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles submodules of the model with ``torch.compile`` before training.

    Submodules are compiled in place (``nn.Module.compile``), because ``torch.compile(module)`` would rename the keys of
    checkpoints. Code that builds the model from the same config without training it (probes,
    ``tools/misc/replay.py``) runs it uncompiled. Submodules that process objects are excluded: the number of objects
    changes in every iteration, and every new size may trigger a recompilation.

    ``dynamic`` is False by default: each batch size is compiled separately, and a training run has only one. With
    ``dynamic=None``, torch would compile the second batch size for all sizes, with symbolic shapes. This takes minutes
    if the groups of a batch are processed in one pass (:class:`ccop_mm.models.grouped_batch_norm.GroupedBatchNorm2d`).

    Args:
        parts (Sequence[str]): Names of the submodules to compile. Defaults to CCOP's image encoders.
        **options: Keyword arguments of ``torch.compile``, such as ``backend`` or ``mode``.
    """

    def __init__(
        self,
        parts: Sequence[str] = ('backbone', 'neck', 'encoder_k.backbone', 'encoder_k.neck'),
        **options: Any,
    ) -> None:
        self.parts = tuple(parts)
        self.options = {'dynamic': False, **options}

    def before_train(self, runner: Runner) -> None:
        """Marks the submodules for compilation, which takes place at their first call.

        Raises:
            InputError: The model has no submodule of a given name.
        """
        model = unwrap_model(runner.model)
        for name in self.parts:
            try:
                part = model.get_submodule(name)
            except AttributeError as error:
                raise InputError(
                    f'CompileHook: {type(model).__name__} has no submodule {name}; change the parts of the hook'
                ) from error
            part.compile(**self.options)
