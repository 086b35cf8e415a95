"""A model from its config, with random weights or a checkpoint's, outside a training run."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import set_random_seed
from torch import nn

from ccop_mm.config_file import read_config
from ccop_mm.errors import InputError
from ccop_mm.weights import read_state_dict


def load_model(config: str | Path | Config, checkpoint: str | Path | None = None, seed: int = 0) -> nn.Module:
    """Builds ``config.model`` on the CPU, in the config's scope.

    Args:
        config (str | Path | Config): A pre-training config, or its file.
        checkpoint (str | Path, optional): Weights to load, all of the model's and no others. Without it the weights are
            initialized as a training run does.
        seed (int): Seed of Python's, numpy's and torch's random numbers, set before the model is built.

    Returns:
        nn.Module: The model, in training mode.

    Raises:
        InputError: If a file is missing or not what it should be, or the checkpoint does not fit the model.
    """
    if not isinstance(config, Config):
        config = read_config(config)
    if 'model' not in config:
        raise InputError(f'{config.filename}: the config has no model')
    init_default_scope(config.get('default_scope', 'mmselfsup'))
    set_random_seed(seed)
    # As mmengine's Runner does: a preprocessor may stand beside the model.
    settings = config.model.copy()
    if config.get('data_preprocessor') is not None:
        settings.setdefault('data_preprocessor', config.data_preprocessor)
    for name in ('queue_len', 'object_queue_len'):
        if settings.get(name) == 'auto':  # of the training data, unknown here; a checkpoint brings its own
            settings[name] = 1
    model = MODELS.build(settings)
    if checkpoint is None:
        with _quiet():
            model.init_weights()
    else:
        load_strictly(model, checkpoint)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that mmengine logs for each parameter when no log file is open."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def load_strictly(model: nn.Module, checkpoint: str | Path) -> None:
    """Loads all weights of a checkpoint into a model that has just these.

    Raises:
        InputError: Naming the keys that are missing, unexpected or of another shape, in one line.
    """
    state = read_state_dict(checkpoint)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        # A size mismatch; torch tells of each on a line of its own, after a title.
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise InputError(f'{checkpoint}: does not fit the config: {_some(lines)}') from None
    faults = [f'{_some(keys)} {what}' for what, keys in (('missing', missing), ('unexpected', unexpected)) if keys]
    if faults:
        raise InputError(f'{checkpoint}: does not fit the config: {"; ".join(faults)}')


def _some(items: list[str], limit: int = 4) -> str:
    """The first few items, and how many more there are."""
    rest = f' and {len(items) - limit} more' if len(items) > limit else ''
    return ', '.join(items[:limit]) + rest
