"""Builds a model from a config for evaluation, with random weights or from a checkpoint."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import set_random_seed
from torch import nn

from ccop_mm.utils.config_file import read_config
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import format_truncated
from ccop_mm.weights import read_state_dict


def load_model(config: str | Path | Config, checkpoint: str | Path | None = None, seed: int = 0) -> nn.Module:
    """Builds ``config.model`` on the CPU in the config's default scope.

    Args:
        config (str | Path | Config): Pre-training config, or the path of its file.
        checkpoint (str | Path, optional): Checkpoint whose keys must match the model's exactly. By default the weights
            are initialized as at the start of training.
        seed (int): Seed of the random generators of Python, numpy and torch, set before the model is built.

    Returns:
        nn.Module: The model, in training mode.

    Raises:
        InputError: A file is missing or invalid, or the checkpoint does not match the model.

    Example:
        >>> from ccop_mm import apis
        >>> model = apis.load_model('my_ccop.py', checkpoint)
        >>> type(model).__name__
        'CCOP'
    """
    if not isinstance(config, Config):
        config = read_config(config)
    if 'model' not in config:
        raise InputError(f'{config.filename}: the config does not define a model')
    init_default_scope(config.get('default_scope', 'mmselfsup'))
    set_random_seed(seed)
    # mmengine's Runner also accepts a data preprocessor at the top level of the config.
    settings = config.model.copy()
    if config.get('data_preprocessor') is not None:
        settings.setdefault('data_preprocessor', config.data_preprocessor)
    for name in ('queue_len', 'object_queue_len'):
        if settings.get(name) == 'auto':  # depends on the training data; loading a checkpoint resizes the queue
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
    """Suppresses the lines that mmengine logs for each initialized parameter."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def load_strictly(model: nn.Module, checkpoint: str | Path) -> None:
    """Loads a checkpoint whose keys and shapes must match the model exactly.

    Raises:
        InputError: Keys are missing, unexpected or have another shape; the message lists them in one line.
    """
    state = read_state_dict(checkpoint)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        # torch lists each size mismatch on its own line, after a title line.
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise InputError(f'{checkpoint} does not match the config: {format_truncated(lines)}') from None
    problems = [
        f'{problem} keys: {format_truncated(keys)}'
        for problem, keys in (('missing', missing), ('unexpected', unexpected))
        if keys
    ]
    if problems:
        raise InputError(f'{checkpoint} does not match the config: {"; ".join(problems)}')
