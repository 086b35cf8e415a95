"""Finds and reads the config file of a detector, also one that an installed package contains."""

import difflib
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.utils import import_modules_from_strings

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import single_line

#: A package that is replaced by its predecessor, which has the same backbones, if only that is installed.
FORMER_PACKAGE = {'mmpretrain': 'mmcls'}
#: Similar file names that are read to find one with a model.
MAX_MATCHES = 10


def locate_config(config: str | Path) -> tuple[Path, str]:
    """Finds a config file and a reference to it that stays valid when the referring file is moved.

    Args:
        config (str | Path): Config file, or ``package::path``.

    Returns:
        tuple[Path, str]: The file, and ``package::path`` if it belongs to the package that contains it, otherwise its
        absolute path.

    Raises:
        InputError: The package is not installed, or the file does not exist.
    """
    package, separator, name = str(config).partition('::')
    if separator:
        folder = _config_folder(package)
        if folder is None:
            raise InputError(f'{config}: the package {package} is not installed or has no configs')
        path = folder / name
        if not path.is_file():
            raise InputError(f'{config} does not exist: {_describe_missing(folder, name)}')
        return path, f'{package}::{name}'
    path = Path(os.path.abspath(config))
    if not path.is_file():
        raise InputError(f'config file {config} does not exist')
    mmdet_configs = _config_folder('mmdet')
    if mmdet_configs is not None and path.is_relative_to(mmdet_configs):
        return path, f'mmdet::{path.relative_to(mmdet_configs).as_posix()}'
    return path, str(path)


def _config_folder(package: str) -> Path | None:
    """Returns the folder of the configs in an installed OpenMMLab package, or None."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    # Wheels and installations from a source tree.
    folders = [folder for folder in (root / '.mim' / 'configs', root.parent / 'configs') if folder.is_dir()]
    return folders[0] if folders else None


def _describe_missing(folder: Path, name: str) -> str:
    """Names the most similar config of a package."""
    known = [path.relative_to(folder).as_posix() for path in sorted(folder.glob('*/*.py'))]
    matches = difflib.get_close_matches(name, known, n=MAX_MATCHES)
    match = next((match for match in matches if _has_model(folder / match)), None)
    return f'did you mean {match}?' if match else f'see {folder}'


def _has_model(path: Path) -> bool:
    """Returns whether a config file contains a model; others contain settings of test-time augmentation or datasets."""
    try:
        return bool(Config.fromfile(path, import_custom_modules=False).get('model'))
    except Exception:  # a config is Python code: an error in it may raise anything
        return False


def load_config(path: Path) -> Config:
    """Reads a config and imports its ``custom_imports``, with mmpretrain replaced by mmcls if only that is installed.

    Modules that may fail to be imported, and do, are removed from ``custom_imports``.

    Raises:
        InputError: The file is no valid config, or a module cannot be imported.
    """
    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
    except Exception as error:  # a config is Python code: an error in it may raise anything
        raise InputError(f'{path} cannot be read as a config: {type(error).__name__}: {single_line(error)}') from error
    for name, former in FORMER_PACKAGE.items():
        if not _mentions(cfg, name) or importlib.util.find_spec(name) is not None:
            continue
        if importlib.util.find_spec(former) is None:
            raise InputError(f'{path} needs the package {name}, which is not installed: pip install {name}')
        print_log(f'{name} is not installed: its modules are taken from its predecessor {former}', logger='current')
        model, imports = _rename(cfg.model.to_dict(), name, former), _rename(custom_imports(cfg), name, former)
        cfg.merge_from_dict(dict(custom_imports=dict(imports=imports)))
        cfg.model = model
    names = custom_imports(cfg)
    allow_failed = (cfg.get('custom_imports') or {}).get('allow_failed_imports', False)
    try:
        modules = import_modules_from_strings(names, allow_failed_imports=allow_failed) or []
    except ImportError as error:
        raise InputError(f'{path}: a module of custom_imports cannot be imported: {single_line(error)}') from error
    if None in modules:  # allowed to fail
        cfg.custom_imports.imports = [name for name, module in zip(names, modules, strict=True) if module is not None]
    return cfg


def custom_imports(cfg: Config) -> list[str]:
    """Returns the modules in ``custom_imports``."""
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    return [imports] if isinstance(imports, str) else list(imports)


def _mentions(cfg: Config, package: str) -> bool:
    """Returns whether a config imports a package, or uses it in backbone or neck."""
    model = cfg.get('model') or {}
    parts = [custom_imports(cfg), *(model.get(name) for name in ('backbone', 'neck') if isinstance(model, Mapping))]
    return any(text.partition('.')[0] == package for part in parts for text in _texts(part))


def _texts(value: Any) -> Iterator[str]:
    """Yields the types and list elements of nested containers that are strings."""
    if isinstance(value, Mapping):
        if isinstance(value.get('type'), str):
            yield value['type']
        for item in value.values():
            if not isinstance(item, str):
                yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from [item] if isinstance(item, str) else _texts(item)


def _rename(value: Any, name: str, former: str) -> Any:
    """Replaces the package ``name`` at the start of types and module names."""
    if isinstance(value, Mapping):
        return {key: _rename(item, name, former) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_rename(item, name, former) for item in value)
    return re.sub(rf'^{name}(?=\.|$)', former, value) if isinstance(value, str) else value
