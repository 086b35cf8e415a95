"""The output folder of a pre-training: what belongs to it, and which of its files may be rewritten."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from ccop_mm.engine.work_dir import earlier_checkpoints
from ccop_mm.pretrain.config_writer import WEIGHTS, WORK_DIR
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write

#: The two configs, and the arguments that they were written for.
PRETRAIN, FINETUNE, ARGUMENTS = 'pretrain.py', 'finetune.py', 'arguments.json'


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

    def describe_difference(self, other: dict[str, Any]) -> str:
        """Describes in which arguments this request differs from a stored one; ``''`` if it does not."""
        own = json.loads(json.dumps(asdict(self), default=repr))
        names = [item.name for item in fields(self) if own[item.name] != other.get(item.name)]
        if names == ['encoder']:
            return 'another backbone, neck or data_preprocessor in the config of the detector'
        return ', '.join(f'{name}={other.get(name)!r}, now {own[name]!r}' for name in names if name != 'encoder')


class OutputFolder:
    """Output folder of a pre-training.

    A config is rewritten until it is edited or the pre-training has saved a checkpoint: then it is kept.

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
        if path.exists() and not path.is_dir():
            raise InputError(f'{path} is a file: pass another output folder')
        stored = self._read()
        if stored is None:
            self._check_foreign_files()
            return
        self._digests = stored['digests']
        difference = request.describe_difference(stored['arguments'])
        edited = [name for name in (PRETRAIN, FINETUNE) if self.is_edited(name)]
        if difference and (self.is_started or edited):
            reason = 'its pre-training has started' if self.is_started else f'{edited[0]} was edited'
            raise InputError(
                f'{path} was made with {difference}, and {reason}: repeat the former command, edit '
                f'{path / PRETRAIN}, or pass another output folder'
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
    def is_started(self) -> bool:
        """Whether the pre-training has saved a checkpoint."""
        return bool(earlier_checkpoints(self.path / WORK_DIR)) or (self.path / WEIGHTS).exists()

    def is_edited(self, name: str) -> bool:
        """Returns whether a config has another content than this class wrote."""
        file = self.path / name
        return file.exists() and _digest(file.read_text(encoding='utf-8')) not in self._digests.get(name, [])

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
            elif file.exists() and self.is_started:
                del texts[name]
        # The digests are stored first: a run that is killed in between must not take its own files for edited ones.
        for name, text in texts.items():
            self._digests[name] = list(dict.fromkeys([*self._digests.get(name, []), _digest(text)]))
        with atomic_write(self.path / ARGUMENTS, 'w') as output:
            content = dict(arguments=asdict(self.request), digests=self._digests)
            json.dump(content, output, indent=2, default=repr)
        for name, text in texts.items():
            with atomic_write(self.path / name, 'w') as output:
                output.write(text)
        return set(texts)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode('utf-8', 'surrogateescape'), digest_size=16).hexdigest()
