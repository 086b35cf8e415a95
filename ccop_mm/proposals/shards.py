"""Parts of a set of photos, for job arrays, and the one file that they give together."""

import hashlib
from dataclasses import dataclass

import numpy as np

from ccop_mm.errors import InputError
from ccop_mm.proposals.store import ProposalStore


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th photo, from the ``index``-th, in ascending order of id.

    Ids of a folder are hashes, so that the parts are alike however the folder is ordered.

    Args:
        index (int): From 0 to count - 1.
        count (int): How many parts there are.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text):
        """Reads ``'i/n'``.

        i is from 0 to n - 1, or from 1 to n, as the job array counts: the last of these is the first of those.

        Raises:
            InputError: If the text is something else.
        """
        index, slash, count = text.partition('/')
        if not (slash and index.isascii() and count.isascii() and index.isdigit() and count.isdigit()):
            raise InputError(f'shard is {text!r} and must be i/n, such as 3/8')
        if int(count) < 1 or int(index) > int(count):
            raise InputError(f'shard is {text}: i must be from 0 to n - 1, or from 1 to n')
        return cls(int(index) % int(count), int(count))

    def of(self, photos):
        """list[Photo]: This part of the photos; may be empty."""
        return sorted(photos, key=lambda photo: photo.image_id)[self.index :: self.count]

    def describe(self, photos):
        """dict: What a part's metadata say of it: its place, and a digest of the list that was cut into parts."""
        return {'index': self.index, 'count': self.count, 'photos': _digest(photos)}


def merge(paths, out):
    """Puts the parts of a set of photos, or the files of several sets, into one file.

    The file of all shards of a set is the same, byte for byte, as that of a run without shards.

    Args:
        paths (list[str | Path]): Proposals files, made by the same rules, that have no photo in common.
        out (str | Path): The file to write.

    Returns:
        ProposalStore: What was written.

    Raises:
        InputError: If a file is at fault, a shard is missing or twice there, or the files do not belong together.
    """
    stores = {str(path): ProposalStore.load(path) for path in paths}
    if len(stores) < len(paths):
        raise InputError('a file is named twice')
    metadata = _common_metadata(stores)
    _check_apart(stores)
    entries = [entry for store in stores.values() for entry in store.entries()]
    skipped = {name: reason for store in stores.values() for name, reason in store.skipped.items()}
    digests = {image_id: store.digest(image_id) for store in stores.values() for image_id in store.image_ids.tolist()}
    merged = ProposalStore(entries, skipped, metadata, digests)
    merged.save(out)
    return merged


def _common_metadata(stores):
    """The metadata that all have, without the shards, which must be whole."""
    (first, reference), *others = [(path, store.metadata) for path, store in stores.items()]
    for path, metadata in others:
        for key in sorted((set(reference) | set(metadata)) - {'shard', 'format_version'}):
            if reference.get(key) != metadata.get(key):
                raise InputError(
                    f'{first} and {path} were made differently: {key} {reference.get(key)} and {metadata.get(key)}'
                )
    shards = {path: store.metadata.get('shard') for path, store in stores.items()}
    if any(shards.values()):
        _check_whole(shards)
    return {key: value for key, value in reference.items() if key != 'shard'}


def _check_whole(shards):
    for path, shard in shards.items():
        if shard is None:
            raise InputError(f'{path} is no shard, others are: merge the shards of one run')
    first, reference = next(iter(shards.items()))
    place_of = {}
    for path, shard in shards.items():
        if (shard['count'], shard['photos']) != (reference['count'], reference['photos']):
            raise InputError(f'{first} and {path} are shards of different lists of photos: make them anew of one list')
        other = place_of.setdefault(shard['index'], path)
        if other != path:
            raise InputError(f'{other} and {path} are the same shard, {shard["index"]}/{shard["count"]}')
    count = reference['count']
    missing = [f'{index}/{count}' for index in range(count) if index not in place_of]
    if missing:
        more = ', ...' if len(missing) > 10 else ''
        raise InputError(f'{len(missing)} of {count} shards are missing: {", ".join(missing[:10])}{more}')


def _check_apart(stores):
    """No id and no file name, of photos used or skipped, in two files."""
    owners = {}
    for path, store in stores.items():
        names = [store.file_name(image_id) for image_id in store.image_ids.tolist()]
        for key in [*store.image_ids.tolist(), *names, *store.skipped]:
            if owners.setdefault(key, path) != path:
                what = f'the photo {key}' if isinstance(key, str) else f'the image id {key}'
                raise InputError(f'{owners[key]} and {path} both hold {what}')


def _digest(photos):
    digest = hashlib.blake2b(digest_size=16)
    photos = sorted(photos, key=lambda photo: photo.image_id)
    digest.update(np.array([photo.image_id for photo in photos], dtype='<u8').tobytes())
    digest.update('\n'.join(photo.file_name for photo in photos).encode('utf-8', 'surrogateescape'))
    return digest.hexdigest()
