"""Config files of mmengine, read for a user who may have slipped."""

from pathlib import Path

from mmengine.config import Config

from ccop_mm.errors import InputError


def read_config(path: str | Path) -> Config:
    """The config in a file.

    Raises:
        InputError: The file is absent or no config.
    """
    if not Path(path).is_file():
        raise InputError(f'no config file {path}')
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is Python: a slip in it may raise anything
        raise InputError(f'{path} cannot be read as a config: {type(error).__name__}: {error}') from error
