"""Shards of a set of images, for job arrays, and merging of their proposals files."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ccop_mm.proposals.runner.finished_file import check_replaceable
from ccop_mm.proposals.store import ProposalStore
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import ImageFile
from ccop_mm.utils.text import format_truncated

#: Key in the metadata of a shard, part of the file format: digest of the list of images that was divided.
LIST_DIGEST_KEY = 'photos'  # codespell:ignore photos

AnyImageFile = TypeVar('AnyImageFile', bound=ImageFile)


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th image, starting at the ``index``-th, in ascending order of the image id.

    The ids of images in a folder are hashes, so each shard is a random sample of the folder.

    Args:
        index (int): From 0 to count - 1.
        count (int): Number of shards.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> 'Shard':
        """Parses ``'i/n'``.

        Args:
            text (str): i is from 0 to n - 1, or from 1 to n, depending on how the job array counts; n is the same as 0.

        Raises:
            InputError: If the text is invalid.
        """
        index, slash, count = text.partition('/')
        if not (slash and index.isascii() and count.isascii() and index.isdigit() and count.isdigit()):
            raise InputError(f'shard must be i/n, such as 3/8, got {text!r}')
        if int(count) < 1 or int(index) > int(count):
            raise InputError(f'shard must be i/n with i from 0 to n - 1, or from 1 to n, got {text!r}')
        return cls(int(index) % int(count), int(count))

    def select(self, images: Sequence[AnyImageFile]) -> list[AnyImageFile]:
        """Returns the images of this shard; may be empty."""
        return sorted(images, key=lambda image: image.image_id)[self.index :: self.count]

    def to_json(self, images: Sequence[ImageFile]) -> dict[str, Any]:
        """Returns the metadata of this shard: its index, and a digest of the list of images that was divided."""
        return {'index': self.index, 'count': self.count, LIST_DIGEST_KEY: _digest(images)}


def merge(paths: Sequence[str | Path], out: str | Path, overwrite: bool = False) -> ProposalStore:
    """Merges the shards of a set of images, or the proposals files of several sets, into one file.

    The file merged from all shards of a set is byte-identical to that of a run without shards.

    Args:
        paths (Sequence[str | Path]): Proposals files generated with the same settings that have no image in common.
        out (str | Path): File to write.
        overwrite (bool): Whether an existing file of other images or settings may be replaced.

    Returns:
        ProposalStore: The merged proposals.

    Raises:
        InputError: If a file is invalid, a shard is missing or given twice, the files do not belong together, or
            ``out`` contains proposals of other images or settings.
    """
    stores = {str(path): ProposalStore.load(path) for path in paths}
    if len(stores) < len(paths):
        twice = next(path for path in stores if [str(given) for given in paths].count(path) > 1)
        raise InputError(f'{twice} is given twice: pass each file once')
    metadata = _common_metadata(stores)
    _check_disjoint(stores)
    entries = [entry for store in stores.values() for entry in store.entries()]
    skipped = {name: reason for store in stores.values() for name, reason in store.skipped.items()}
    digests = {image_id: store.digest(image_id) for store in stores.values() for image_id in store.image_ids.tolist()}
    check_replaceable(out, [*(entry[1] for entry in entries), *skipped], metadata, overwrite)
    merged = ProposalStore(entries, skipped, metadata, digests)
    merged.save(out)
    return merged


def _common_metadata(stores: Mapping[str, ProposalStore]) -> dict[str, Any]:
    """Returns the metadata that all stores share, without that of the shards, which must be complete."""
    (first, reference), *others = [(path, store.metadata) for path, store in stores.items()]
    for path, metadata in others:
        for key in sorted((set(reference) | set(metadata)) - {'shard', 'format_version'}):
            if reference.get(key) != metadata.get(key):
                raise InputError(
                    f'{first} and {path} were generated differently: {key} is {reference.get(key)} and '
                    f'{metadata.get(key)}: generate both with the same settings'
                )
    shards = {path: store.metadata.get('shard') for path, store in stores.items()}
    if any(shards.values()):
        _check_complete(shards)
    return {key: value for key, value in reference.items() if key != 'shard'}


def _check_complete(shards: Mapping[str, dict[str, Any] | None]) -> None:
    """Raises :class:`InputError` unless the files are all shards of one list of images, each exactly once."""
    first, reference = '', None
    path_by_index: dict[int, str] = {}
    for path, shard in shards.items():
        if shard is None:
            raise InputError(f'{path} is not a shard, but other files are: merge the shards of one run')
        if reference is None:
            first, reference = path, shard
        if (shard['count'], shard[LIST_DIGEST_KEY]) != (reference['count'], reference[LIST_DIGEST_KEY]):
            raise InputError(
                f'{first} and {path} are shards of different lists of images: generate them again from one list'
            )
        other = path_by_index.setdefault(shard['index'], path)
        if other != path:
            raise InputError(f'{other} and {path} are the same shard, {shard["index"]}/{shard["count"]}')
    count = reference['count'] if reference else 0
    missing = [f'{index}/{count}' for index in range(count) if index not in path_by_index]
    if missing:
        raise InputError(
            f'{len(missing)} of {count} shards are missing: {format_truncated(missing, limit=10)}: run them first'
        )


def _check_disjoint(stores: Mapping[str, ProposalStore]) -> None:
    """Raises :class:`InputError` if two files contain the same id or file name, skipped images included."""
    owners: dict[int | str, str] = {}
    for path, store in stores.items():
        names = [store.file_name(image_id) for image_id in store.image_ids.tolist()]
        for key in [*store.image_ids.tolist(), *names, *store.skipped]:
            if owners.setdefault(key, path) != path:
                what = f'the image {key}' if isinstance(key, str) else f'the image id {key}'
                raise InputError(f'{owners[key]} and {path} both contain {what}: merge files without common images')


def _digest(images: Sequence[ImageFile]) -> str:
    """Returns the BLAKE2b digest of the ids and file names of images, whatever their order."""
    digest = hashlib.blake2b(digest_size=16)
    images = sorted(images, key=lambda image: image.image_id)
    digest.update(np.array([image.image_id for image in images], dtype='<u8').tobytes())
    digest.update('\n'.join(image.file_name for image in images).encode('utf-8', 'surrogateescape'))
    return digest.hexdigest()
