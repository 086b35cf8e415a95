"""The initial weights that a study compares: names, and how each is loaded into the detector."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccop_mm.utils.errors import InputError
from ccop_mm.weights import BackbonePretrained, CCOPPretrained, EncoderPretrained
from ccop_mm.weights.encoder_checkpoint import read_encoder
from ccop_mm.weights.key_mapping import has_neck

#: Weights that are not in a file: random ones, and those that the config of the detector loads.
RANDOM, OWN = 'random', 'init_cfg'

#: In the path of a checkpoint: the seed of the run, for pre-trainings that were repeated with several seeds.
SEED = '{seed}'

#: Names that can be part of a file name.
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._+-]*')

#: Initializers of :mod:`ccop_mm.weights`, and what they load.
LOADED_PARTS = {
    CCOPPretrained.__name__: 'backbone and neck',
    BackbonePretrained.__name__: 'backbone',
    EncoderPretrained.__name__: 'backbone, and neck if it is in the file,',
}


@dataclass(frozen=True)
class InitialWeights:
    """Initial weights of the detector.

    Args:
        name (str): Name in tables and file names.
        source (str): :data:`RANDOM`, :data:`OWN`, or the path of a checkpoint, in which :data:`SEED` stands for the
            seed of a run.
        initializer (str | None): Name of the initializer that loads the checkpoint.
        digest (str): Checksum of the file; ``''`` for others, and for one file per seed.
        digests (tuple[tuple[int, str], ...]): Seed and checksum of each file if there is one per seed.
    """

    name: str
    source: str
    initializer: str | None = None
    digest: str = ''
    digests: tuple[tuple[int, str], ...] = ()

    def init_cfg(self, seed: int) -> dict[str, Any] | None:
        """Returns the initializer of the detector in a run, for weights in a file."""
        path = self.source.replace(SEED, str(seed))
        return dict(type=self.initializer, checkpoint=path) if self.initializer else None

    def describe(self) -> str:
        """Describes the source in a few words."""
        if self.source == RANDOM:
            return 'random, by the initializers of the config without its checkpoints'
        if self.initializer is None:
            return 'as the config of the detector'
        return f'{LOADED_PARTS[self.initializer]} of {self.source}, by {self.initializer}'


def read_weights(arguments: Sequence[str], seeds: Sequence[int] = (0,)) -> list[InitialWeights]:
    """Reads the arguments of ``--weights`` and chooses an initializer for each file by its content.

    Args:
        arguments (Sequence[str]): ``'random'``, ``'NAME=random'``, ``'NAME=init_cfg'`` or ``'NAME=FILE'`` each. If FILE
            contains :data:`SEED`, there is one file per seed.
        seeds (Sequence[int]): Seeds of the runs.

    Raises:
        InputError: An argument has no name, a name is invalid or occurs twice, a file cannot be read, or the files of a
            name need different initializers.
    """
    weights: list[InitialWeights] = []
    for argument in arguments:
        name, _, source = (argument if argument != RANDOM else f'{RANDOM}={RANDOM}').partition('=')
        if not source:
            raise InputError(f'--weights {argument}: write random, NAME={OWN} or NAME=FILE')
        if not _NAME.fullmatch(name):
            raise InputError(f'--weights {argument}: the name {name!r} may contain letters, digits, ".", "_", "+", "-"')
        if name in (other.name for other in weights):
            raise InputError(f'--weights: the name {name} occurs twice; use a name of its own for each')
        weights.append(_read(name, source, seeds))
    if not weights:
        raise InputError('--weights is empty: pass random, NAME=init_cfg or NAME=FILE')
    return weights


def _read(name: str, source: str, seeds: Sequence[int]) -> InitialWeights:
    if source in (RANDOM, OWN):
        return InitialWeights(name, source)
    template = os.path.abspath(os.path.expanduser(source))
    paths = {seed: template.replace(SEED, str(seed)) for seed in seeds}
    for path in paths.values():
        if not os.path.isfile(path):
            raise InputError(
                f'--weights {name}={source}: the file {path} does not exist; {RANDOM} and {OWN} are no files'
            )
    initializers = {choose_initializer(path): path for path in dict.fromkeys(paths.values())}
    if len(initializers) > 1:
        found = ', '.join(f'{LOADED_PARTS[key]} in {path}' for key, path in initializers.items())
        raise InputError(f'--weights {name}={source}: the files differ in what they contain ({found})')
    (initializer,) = initializers
    if SEED not in template:
        return InitialWeights(name, template, initializer, _digest(template))
    return InitialWeights(name, template, initializer, '', tuple((seed, _digest(paths[seed])) for seed in seeds))


def choose_initializer(path: str) -> str:
    """Returns the name of the initializer for a checkpoint.

    Args:
        path (str): File.

    Returns:
        str: ``'CCOPPretrained'`` if the file contains a backbone and a neck, ``'BackbonePretrained'`` if it contains a
        backbone in one of the formats that this initializer reads. Otherwise ``'EncoderPretrained'``, which finds
        backbone and neck by their keys, also in a detector or a classifier, and reports a file without them.
    """
    try:
        chosen = CCOPPretrained if has_neck(read_encoder(path).tensors) else BackbonePretrained
        return chosen.__name__
    except InputError:
        return EncoderPretrained.__name__


def _digest(path: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with Path(path).open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
