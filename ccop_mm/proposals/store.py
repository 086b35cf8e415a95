"""The proposals file: boxes by image id."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np

from ccop_mm.errors import InputError
from ccop_mm.fileio import atomic_write

FORMAT = 'ccop_mm proposals'
FORMAT_VERSION = 1

# Every array of the file but its checksum. Texts are UTF-8 bytes, one after another, with the n + 1 places where each
# begins and the last ends: arrays of Python strings would need pickle.
ARRAYS = (
    'metadata',
    'image_ids',
    'sizes',
    'offsets',
    'boxes',
    'names',
    'name_offsets',
    'skipped_names',
    'skipped_name_offsets',
    'skipped_reasons',
    'skipped_reason_offsets',
)


class ProposalStore:
    """The proposals of many photos, by image id.

    The file is an uncompressed ``.npz`` without pickle: :attr:`image_ids` ascending, the boxes of all photos one after
    another in that order, file names, sizes, what was skipped and why, a JSON text of metadata, and a BLAKE2b checksum
    of everything. The same content gives the same bytes, in whatever order it came.

    Args:
        entries (Iterable[tuple]): ``(image_id, file_name, (height, width), boxes)`` of each photo; boxes (n, 4) xyxy in
            pixels of the photo as :func:`~ccop_mm.proposals.load_photo` reads it, n may be 0.
        skipped (dict[str, str]): File name -> reason, of the photos that could not be used.
        metadata (dict): How the boxes were made; must be fit for JSON.

    Raises:
        ValueError: If an image id occurs twice.
    """

    def __init__(self, entries, skipped=None, metadata=None):
        entries = sorted(entries, key=lambda entry: entry[0])
        image_ids = np.array([entry[0] for entry in entries], dtype=np.int64)
        if (np.diff(image_ids) == 0).any():
            raise ValueError('an image id occurs twice')
        boxes = [np.asarray(entry[3], dtype=np.float32).reshape(-1, 4) for entry in entries]
        metadata = {'format': FORMAT, 'format_version': FORMAT_VERSION, **(metadata or {})}
        skipped = sorted((skipped or {}).items())
        self._arrays = {
            'metadata': np.frombuffer(json.dumps(metadata, sort_keys=True).encode(), dtype=np.uint8),
            'image_ids': image_ids,
            'sizes': np.array([entry[2] for entry in entries], dtype=np.int32).reshape(-1, 2),
            'offsets': np.cumsum([0, *map(len, boxes)], dtype=np.int64),
            'boxes': np.concatenate([np.empty((0, 4), np.float32), *boxes]),
            **_pack('name', [entry[1] for entry in entries]),
            **_pack('skipped_name', [name for name, _ in skipped]),
            **_pack('skipped_reason', [reason for _, reason in skipped]),
        }

    @classmethod
    def load(cls, path):
        """Reads a store.

        Args:
            path (str | Path): The file.

        Returns:
            ProposalStore: The whole store, in memory.

        Raises:
            InputError: If the file is missing, is no proposals file, was cut short or altered, or has a newer format.
        """
        store = cls.__new__(cls)
        store._arrays = _read(path)
        return store

    def save(self, path):
        """Writes the store; ``path`` (str | Path) holds the whole of it or what it held before, never a part."""
        with atomic_write(path) as file:
            # Stored with the fixed date of 1980 that np.savez gives: no byte depends on the day.
            np.savez(file, checksum=_checksum(self._arrays), **self._arrays)

    @property
    def image_ids(self):
        """np.ndarray: (n,) int64, ascending."""
        return self._arrays['image_ids']

    @property
    def metadata(self):
        """dict: Format, versions and parameters."""
        return json.loads(self._arrays['metadata'].tobytes())

    @property
    def skipped(self):
        """dict[str, str]: File name -> reason, of the photos that could not be used."""
        names, reasons = (_unpack(self._arrays, kind) for kind in ('skipped_name', 'skipped_reason'))
        return dict(zip(names, reasons, strict=True))

    def boxes(self, image_id):
        """The proposals of one photo: a new (n, 4) float32 array of xyxy boxes in pixels; n may be 0.

        They are in a random order that the image id decides: any prefix is an unbiased sample.

        Raises:
            KeyError: If the store has no such photo.
        """
        index = self._index(image_id)
        start, end = self._arrays['offsets'][index : index + 2]
        return self._arrays['boxes'][start:end].copy()

    def file_name(self, image_id):
        """The photo's path relative to its folder (str); raises ``KeyError`` as :meth:`boxes` does."""
        index = self._index(image_id)
        start, end = self._arrays['name_offsets'][index : index + 2]
        return _decode(self._arrays['names'][start:end])

    def size(self, image_id):
        """The photo's ``(height, width)`` in pixels; raises ``KeyError`` as :meth:`boxes` does."""
        return tuple(self._arrays['sizes'][self._index(image_id)].tolist())

    def __len__(self):
        return len(self.image_ids)

    def __contains__(self, image_id):
        return self._find(image_id) is not None

    def _find(self, image_id):
        index = int(np.searchsorted(self.image_ids, image_id))
        return index if index < len(self) and self.image_ids[index] == image_id else None

    def _index(self, image_id):
        index = self._find(image_id)
        if index is None:
            raise KeyError(f'no proposals for image id {image_id}')
        return index


def _read(path):
    """The arrays of a file, checked."""
    if not Path(path).is_file():
        raise InputError(f'no proposals file {path}: make it with tools/propose.py')
    damaged = InputError(f'{path} was cut short or altered: make it again with tools/propose.py')
    foreign = InputError(f'{path} is not a proposals file of tools/propose.py')
    try:
        if not zipfile.is_zipfile(path):  # it lacks the directory that ends a zip file
            raise damaged if Path(path).read_bytes()[:2] == b'PK' else foreign
        with np.load(path, allow_pickle=False) as file:
            if 'metadata' not in file or 'checksum' not in file:
                raise foreign
            metadata = json.loads(file['metadata'].tobytes())
            if metadata['format'] != FORMAT:
                raise foreign
            if metadata['format_version'] > FORMAT_VERSION:
                raise InputError(f'{path} is of format {metadata["format_version"]}: update ccop_mm to read it')
            arrays = {name: file[name] for name in ARRAYS}
            checksum = file['checksum']
    except InputError:
        raise
    except OSError as error:
        raise InputError(f'cannot read {path}: {error.strerror or error}') from None
    except Exception:  # zipfile, numpy and json each have several of their own for bytes that make no sense
        raise damaged from None
    if not np.array_equal(checksum, _checksum(arrays)):
        raise damaged
    return arrays


def _checksum(arrays):
    """(32,) uint8, of the name, type, shape and bytes of every array."""
    digest = hashlib.blake2b(digest_size=32)
    for name in ARRAYS:
        array = np.ascontiguousarray(arrays[name])
        digest.update(f'{name} {array.dtype.str} {array.shape}'.encode())
        digest.update(array.data)
    return np.frombuffer(digest.digest(), dtype=np.uint8)


def _pack(kind, texts):
    # surrogateescape: file names that are not UTF-8 keep the bytes they have on disk.
    encoded = [text.encode('utf-8', 'surrogateescape') for text in texts]
    return {
        f'{kind}s': np.frombuffer(b''.join(encoded), dtype=np.uint8),
        f'{kind}_offsets': np.cumsum([0, *map(len, encoded)], dtype=np.int64),
    }


def _unpack(arrays, kind):
    data, offsets = arrays[f'{kind}s'], arrays[f'{kind}_offsets'].tolist()
    return [_decode(data[start:end]) for start, end in zip(offsets, offsets[1:], strict=False)]


def _decode(data):
    return data.tobytes().decode('utf-8', 'surrogateescape')
