"""The output folder of a pre-training: what belongs to it, and which of its files may be rewritten."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from ccop_mm.engine.work_dir import claim_work_dir, earlier_checkpoints
from ccop_mm.pretrain.config_writer import WEIGHTS, WORK_DIR
from ccop_mm.utils.config_file import read_config
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write

#: The two configs, and the arguments that they were written for.
PRETRAIN, FINETUNE, ARGUMENTS = 'pretrain.py', 'finetune.py', 'arguments.json'

#: Characters that a written config cannot contain in its path, which mmengine inserts into the text of the file. A
#: backslash is the separator of Windows; elsewhere, mmengine replaces it by a slash.
FORBIDDEN = '\'"\r\n' + ('\\' if os.sep == '/' else '')


def resolve_output(out: str | Path) -> Path:
    """Returns the absolute path of an output folder.

    Raises:
        InputError: It is a file, or its path contains one of :data:`FORBIDDEN`.
    """
    path = Path(os.path.abspath(os.path.expanduser(out)))
    found = next((character for character in str(path) if character in FORBIDDEN), None)
    if found is not None:
        raise InputError(f'the path {str(path)!r} contains {found!r}, which configs do not support: pass another --out')
    if path.exists() and not path.is_dir():
        raise InputError(f'{path} is a file: pass another --out')
    return path


@contextlib.contextmanager
def claim_folder(path: str | Path, resume: str | None = 'auto') -> Iterator[None]:
    """Locks a folder, see :func:`ccop_mm.engine.work_dir.claim_work_dir`. It is created if it does not exist.

    Args:
        path (str | Path): Output folder, or the work directory inside it.
        resume (str, optional): None refuses a work directory with checkpoints.

    Raises:
        InputError: Another command uses the folder, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(claim_work_dir(Config(dict(work_dir=str(path))), resume))
        except InputError as error:
            # The option of tools/pretrain.py; the command line of the other process, which comes first, may contain it.
            raise InputError('--out'.join(str(error).rsplit('--work-dir', 1))) from None
        yield


@dataclass(frozen=True)
class Request:
    """What the written configs depend on. Paths are absolute.

    Args:
        detector (str): Reference to the config of the detector.
        images (str): Folder, COCO json or text file.
        image_root (str | None): Folder of the images of a json or text file.
        weights (str | None): Initial weights.
        epochs (int | str): Number of epochs, or ``'auto'``.
        view_size (int | None): Side of the views in pixels.
        batch_size (int | None): Images per step.
        options (dict): Settings of the pre-training config to override, by dotted key.
        encoder (str): Digest of the detector's backbone, neck and data preprocessor.
        weights_prefix (str | None): Prefix of the backbone's keys in the initial weights.
        num_gpus (int): Number of processes that train.
    """

    detector: str
    images: str
    image_root: str | None
    weights: str | None
    epochs: int | str
    view_size: int | None
    batch_size: int | None
    options: dict[str, Any]
    encoder: str
    weights_prefix: str | None = None
    num_gpus: int = 1

    def describe_difference(self, other: dict[str, Any]) -> str:
        """Describes in which arguments this request differs from a stored one; ``''`` if it does not."""
        own = json.loads(json.dumps(asdict(self), default=repr))
        # Folders of former versions lack the arguments that were added later.
        other = {**{item.name: item.default for item in fields(self) if item.default is not MISSING}, **other}
        names = [item.name for item in fields(self) if own[item.name] != other.get(item.name)]
        if names == ['encoder']:
            return 'another backbone, neck or data_preprocessor in the config of the detector'
        return ', '.join(f'{name}={other.get(name)!r}, now {own[name]!r}' for name in names if name != 'encoder')


class OutputFolder:
    """Output folder of a pre-training.

    A config is rewritten until it is edited or the pre-training has started: then it is kept.

    Args:
        path (Path): Folder.
        request (Request): What it is to contain.

    Raises:
        InputError: The folder belongs to another request that cannot be replaced without loss, or contains files of the
            same names from elsewhere.
    """

    def __init__(self, path: Path, request: Request) -> None:
        self.path = path
        self.request = request
        self._digests: dict[str, list[str]] = {}
        stored = self._read()
        if stored is None:
            self._check_foreign_files()
            return
        self._digests = stored['digests']
        difference = request.describe_difference(stored['arguments'])
        edited = [name for name in (PRETRAIN, FINETUNE) if self.is_edited(name)]
        if difference and (self.is_started or edited):
            reason = 'its pre-training has started' if self.is_started else f'{edited[0]} was edited'
            discard = '' if self.has_checkpoint or not self.is_started else f', delete {self.work_dir}'
            raise InputError(
                f'{path} was made with {difference}, and {reason}: repeat the former command, edit '
                f'{path / PRETRAIN}{discard}, or pass another output folder'
            )

    def _read(self) -> dict[str, Any] | None:
        file = self.path / ARGUMENTS
        if not file.exists():
            return None
        try:
            stored = json.loads(file.read_text(encoding='utf-8'))
            return {'arguments': dict(stored['arguments']), 'digests': dict(stored['digests'])}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f'{file} cannot be read ({type(error).__name__}): pass another output folder') from error

    def _check_foreign_files(self) -> None:
        files = [self.path / name for name in (PRETRAIN, FINETUNE, WEIGHTS)]
        foreign = [file for file in files if file.exists()] + earlier_checkpoints(self.path / WORK_DIR)
        if foreign:
            raise InputError(
                f'{foreign[0]} exists and was not written by this command ({self.path / ARGUMENTS} is missing): pass '
                'another output folder'
            )

    @property
    def work_dir(self) -> Path:
        """Folder of the checkpoints and logs, which an edited config may have moved.

        Raises:
            InputError: The edited config cannot be read.
        """
        edited = read_config(self.path / PRETRAIN).get('work_dir') if self.is_edited(PRETRAIN) else None
        return Path(os.path.abspath(edited)) if isinstance(edited, str) else self.path / WORK_DIR

    @property
    def has_checkpoint(self) -> bool:
        """Whether the pre-training has saved a checkpoint."""
        return bool(earlier_checkpoints(self.work_dir)) or (self.path / WEIGHTS).exists()

    @property
    def is_started(self) -> bool:
        """Whether the pre-training has created files. Before the first checkpoint, it may be running."""
        work_dir = self.work_dir
        return self.has_checkpoint or (work_dir.is_dir() and any(work_dir.iterdir()))

    def is_edited(self, name: str) -> bool:
        """Returns whether a config has another content than this class wrote.

        Raises:
            InputError: The file cannot be read.
        """
        file = self.path / name
        try:
            return file.exists() and _digest(file.read_bytes()) not in self._digests.get(name, [])
        except OSError as error:
            raise InputError(f'{file} cannot be read ({error.strerror}): correct its permissions') from None

    def keeps(self, name: str) -> bool:
        """Returns whether :meth:`write` keeps the present config."""
        return self.is_edited(name) or (self.is_started and (self.path / name).exists())

    def write(self, pretrain: str, finetune: str) -> set[str]:
        """Writes the configs that may be rewritten.

        Args:
            pretrain (str): Content of the pre-training config.
            finetune (str): Content of the fine-tuning config.

        Returns:
            set[str]: Names of the written files.
        """
        texts = {PRETRAIN: pretrain, FINETUNE: finetune}
        for name in list(texts):
            file = self.path / name
            if self.is_edited(name):
                print_log(f'{file} was edited: it is kept and used', logger='current')
                del texts[name]
            elif self.keeps(name):
                del texts[name]
        # The digests are stored first: a run that is killed in between must not take its own files for edited ones.
        for name, text in texts.items():
            self._digests[name] = list(dict.fromkeys([*self._digests.get(name, []), _digest(text.encode('utf-8'))]))
        with atomic_write(self.path / ARGUMENTS, 'w') as output:
            content = dict(arguments=asdict(self.request), digests=self._digests)
            json.dump(content, output, indent=2, default=repr)
        for name, text in texts.items():
            with atomic_write(self.path / name, 'w') as output:
                output.write(text)
        return set(texts)


def _digest(content: bytes) -> str:
    # Text files of Windows end their lines in another way.
    return hashlib.blake2b(content.replace(b'\r\n', b'\n'), digest_size=16).hexdigest()
