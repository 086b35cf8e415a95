"""Resumes a training run from a checkpoint."""

from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from ccop_mm.utils.errors import InputError
from ccop_mm.weights.newest_checkpoint import find_newest, read_meta


def set_resume(cfg: Config, resume: str | None) -> None:
    """Configures a run to resume, with the seed of the original run if the config does not set one.

    The model's ``init_cfg`` is removed if it loads a pre-training checkpoint: its weights would be overwritten, and the
    file may no longer exist.

    Args:
        cfg (Config): Training config, modified in place.
        resume (str, optional): Checkpoint file or URL. ``'auto'`` selects the newest readable checkpoint in the work
            directory (:func:`ccop_mm.weights.newest_checkpoint.find_newest`); without one, training starts from
            scratch. None leaves the config as it is.

    Raises:
        InputError: The file does not exist or cannot be read.
    """
    if resume is None:
        return
    if resume == 'auto':
        newest = find_newest(cfg.work_dir)
        if newest is None:
            print_log(f'no checkpoint found in {cfg.work_dir}: training starts from scratch', logger='current')
            return
        path, meta = newest
    else:
        path, meta = resume, {} if '://' in resume else _read_checkpoint_meta(resume, cfg)
    cfg.resume, cfg.load_from = True, path
    init_cfg = (cfg.get('model') or {}).get('init_cfg')
    initializers = init_cfg if isinstance(init_cfg, list) else [init_cfg or {}]
    if any(str(item.get('type')).endswith(('CCOPPretrained', 'BackbonePretrained')) for item in initializers):
        cfg.model.init_cfg = None
    # mmengine restores the seed too, but only after it has built the sampler with a different one.
    randomness = cfg.get('randomness') or {}
    if randomness.get('seed') is None and meta.get('seed') is not None:
        cfg.randomness = dict(randomness, seed=meta['seed'])


def _read_checkpoint_meta(path: str, cfg: Config) -> dict:
    hint = f'pass --resume without a file to use the newest readable checkpoint in {cfg.work_dir}'
    if not Path(path).is_file():
        raise InputError(f'checkpoint {path} does not exist; {hint}')
    try:
        return read_meta(path)
    except InputError as error:
        raise InputError(f'{error}; {hint}') from error
