"""The output folder of a study: which detector, data and weights its runs belong to."""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccop_mm.label_efficiency.detector import StudyDetector
from ccop_mm.label_efficiency.runs import Run, RunFolder, format_settings
from ccop_mm.label_efficiency.weights import InitialWeights
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write

#: File with the identity of a study.
IDENTITY = 'study.json'
#: What a study depends on, as named in messages.
TITLES = {
    'detector': 'the config of the detector',
    'settings': 'the content of the config of the detector, or --cfg-options',
    'train': 'the training data',
    'val': 'the validation data',
    'class_agnostic': '--class-agnostic',
}


@dataclass(frozen=True)
class StudyFolder:
    """Output folder of a study.

    Args:
        path (Path): Folder.
    """

    path: Path

    @property
    def data(self) -> Path:
        """Folder of the COCO json files of the runs."""
        return self.path / 'data'

    def run_path(self, run: Run) -> Path:
        """Returns the path of the folder of a run."""
        return self.path / 'runs' / run.name

    def run_folder(self, run: Run, settings: dict[str, Any]) -> RunFolder:
        """Returns the folder of a run with its config."""
        return RunFolder(self.run_path(run), format_settings(settings))

    def claim(self, detector: StudyDetector, weights: Sequence[InitialWeights], class_agnostic: bool) -> None:
        """Stores what the study depends on.

        Further weights, shares, seeds and learning rates may be added later: finished runs are used again. A study of
        which no run has started is replaced.

        Raises:
            InputError: The folder contains a study of something else, or files from elsewhere.
        """
        content = repr([detector.settings, detector.random_model])
        identity = dict(
            detector=detector.reference,
            settings=hashlib.blake2b(content.encode(), digest_size=16).hexdigest(),
            train=detector.train.digest,
            val=detector.val.digest,
            class_agnostic=class_agnostic,
        )
        sources = {each.name: [each.source, each.digest] for each in weights}
        file = self.path / IDENTITY
        stored = self._read(file)
        known = {name: source for name, source in stored.pop('weights', {}).items() if self._has_runs(re.escape(name))}
        if stored and not self._has_runs():
            shutil.rmtree(self.data, ignore_errors=True)  # it may be of other data
            stored = {}
        different = [title for key, title in TITLES.items() if stored and stored.get(key) != identity[key]]
        different += [f'the weights {name}' for name, source in sources.items() if known.get(name, source) != source]
        if different:
            raise InputError(
                f'{self.path} contains a study that differs in {", ".join(different)}: repeat its command, or pass '
                'another --out'
            )
        with atomic_write(file, 'w') as output:
            json.dump({**identity, 'weights': {**known, **sources}}, output, indent=1)

    def _has_runs(self, name: str = '.*') -> bool:
        """Returns whether a run has started, of any initial weights or of those with a name."""
        folders = (self.path / 'runs').glob('*')
        return any(re.fullmatch(rf'{name}-\d+-(rate|final)-.*', folder.name) for folder in folders)

    def _read(self, file: Path) -> dict[str, Any]:
        if not file.exists():
            foreign = [path for path in (self.data, self.path / 'runs', self.path / 'results.json') if path.exists()]
            if foreign:
                raise InputError(f'{foreign[0]} exists and {file} does not: pass another --out')
            return {}
        try:
            stored = json.loads(file.read_text(encoding='utf-8'))
            return {**stored, 'weights': dict(stored['weights'])}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f'{file} cannot be read ({type(error).__name__}): pass another --out') from error
