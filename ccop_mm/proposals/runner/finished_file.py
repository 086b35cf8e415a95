"""Protection of a finished proposals file against replacement by one of other images or settings."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ccop_mm.proposals.runner.journal import format_difference
from ccop_mm.proposals.store import ProposalStore
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import format_truncated


def check_replaceable(
    path: str | Path, file_names: Iterable[str], metadata: Mapping[str, Any], overwrite: bool = False
) -> None:
    """Checks that a file does not exist yet, or contains proposals of the same images and settings.

    Other proposals may be in use: a pre-training resumes only with the file that it was started with.

    Args:
        path (str | Path): File to write.
        file_names (Iterable[str]): File names of all images of the new file, skipped ones included.
        metadata (Mapping[str, Any]): Metadata of the new file.
        overwrite (bool): Whether any file may be replaced.

    Raises:
        InputError: If the file exists and is not a proposals file of the same images and settings.
    """
    if overwrite or not os.path.lexists(path):
        return
    advice = 'write to another file with --out, or replace this one with --overwrite'
    try:
        store = ProposalStore.load(path)
    except InputError:
        raise InputError(f'{path} exists and is not an intact proposals file: {advice}') from None
    found = store.metadata
    # The same json may be imported as ground truth or as proposals: either file can be restored from it.
    imported = 'imported_from' in metadata and found.get('imported_from') == metadata['imported_from']
    old, new = _settings(found), _settings(metadata)
    if old.get('method') != new.get('method'):  # most other settings differ as well
        old, new = {'method': old.get('method')}, {'method': new.get('method')}
    settings = '' if imported else format_difference(old, new)
    if settings:
        raise InputError(f'{path} exists and contains proposals with {settings}: {advice}')
    shards = [values.get('shard') for values in (found, metadata)]
    if _is_redivided(*shards):
        return
    if shards[0] != shards[1]:
        before, now = map(_shard_name, shards)
        raise InputError(f'{path} exists and contains the proposals of {before} (now {now}): {advice}')
    stored, names = {store.file_name(image_id) for image_id in store.image_ids.tolist()}, set(file_names)
    stored.update(store.skipped)
    if stored != names:
        examples = format_truncated(sorted((stored - names) or (names - stored)), limit=2)
        raise InputError(
            f'{path} exists and contains proposals of other images: {len(stored - names)} of its {len(stored)} are '
            f'not in this run, {len(names - stored)} of the {len(names)} images of this run are not in it, for example '
            f'{examples}; {advice}'
        )


def _settings(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in ('format', 'format_version', 'shard')}


def _is_redivided(found: Mapping[str, Any] | None, expected: Mapping[str, Any] | None) -> bool:
    """Returns whether two shards belong to divisions of the same images into different numbers of shards.

    The old one is of no use any more: only shards of the same division can be merged.
    """
    if not found or not expected or found['count'] == expected['count']:
        return False
    return _list_digest(found) == _list_digest(expected)


def _shard_name(shard: Mapping[str, Any] | None) -> str:
    return f'shard {shard["index"]}/{shard["count"]} of list {_list_digest(shard)}' if shard else 'all images'


def _list_digest(shard: Mapping[str, Any]) -> str:
    """Returns the digest of the list of images that was divided."""
    return next(str(value) for key, value in shard.items() if key not in ('index', 'count'))
