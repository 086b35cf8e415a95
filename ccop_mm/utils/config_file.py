"""Reads and writes mmengine config files."""

from pathlib import Path

from mmengine.config import Config

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write


def read_config(path: str | Path) -> Config:
    """Reads a config file.

    Raises:
        InputError: The file does not exist or is not a valid config.
    """
    if not Path(path).is_file():
        raise InputError(f'config file {path} does not exist')
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is Python code: an error in it may raise anything
        raise InputError(f'{path} cannot be read as a config: {type(error).__name__}: {error}') from error


def write_config(path: Path, base: Path, settings: dict) -> Path:
    """Writes a config that inherits from another one.

    Args:
        path (Path): Config file to write.
        base (Path): Config file to inherit from.
        settings (dict): Top-level settings to override; their ``repr`` must be valid Python.

    Returns:
        Path: ``path``.
    """
    lines = [f'_base_ = [{str(base)!r}]', *(f'{name} = {value!r}' for name, value in settings.items())]
    with atomic_write(path, 'w') as file:
        file.write('\n'.join(lines) + '\n')
    return path
