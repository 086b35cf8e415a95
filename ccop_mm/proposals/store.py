"""The proposals file: boxes by image id."""

import functools
import json
import os

import numpy as np

from ccop_mm.proposals.store_file import FORMAT, FORMAT_VERSION, map_again, read_arrays, write_arrays


class ProposalStore:
    """The proposals of many photos, by image id.

    The file is an uncompressed ``.npz`` without pickle: :attr:`image_ids` ascending, the boxes of all photos one after
    another in that order, file names, sizes, digests of the photos' files, what was skipped and why, a JSON text of
    metadata, and a BLAKE2b checksum of everything. The same content gives the same bytes, in whatever order it came.

    A loaded store is the file's own pages, mapped read-only: all processes of a machine share one copy. Pickled, as for
    a loader's workers that are spawned, it is the path; the file is mapped there again.

    Args:
        entries (Iterable[tuple]): ``(image_id, file_name, (height, width), boxes)`` of each photo; boxes (n, 4) xyxy in
            pixels of the photo as :func:`~ccop_mm.proposals.load_photo` reads it, n may be 0. They are kept as float32,
            or as uint16 if all of them are whole pixels, which is the same in half the space.
        skipped (dict[str, str]): File name -> reason, of the photos that could not be used.
        metadata (dict): How the boxes were made; must be fit for JSON.
        digests (dict[int, int]): Image id -> :func:`~ccop_mm.proposals.sources.digest_of` its file, where known.

    Raises:
        ValueError: If an image id or a file name occurs twice.
    """

    def __init__(self, entries, skipped=None, metadata=None, digests=None):
        entries = sorted(entries, key=lambda entry: entry[0])
        image_ids = np.array([entry[0] for entry in entries], dtype=np.int64)
        names = [entry[1] for entry in entries]
        if (np.diff(image_ids) == 0).any() or len(set(names)) < len(names):
            raise ValueError('an image id or a file name occurs twice')
        boxes = [np.asarray(entry[3], dtype=np.float32).reshape(-1, 4) for entry in entries]
        digests = digests or {}
        skipped = sorted((skipped or {}).items())
        self._file = None
        self._arrays = {
            'metadata': _metadata(metadata or {}),
            'image_ids': image_ids,
            'sizes': np.array([entry[2] for entry in entries], dtype=np.int32).reshape(-1, 2),
            'offsets': np.cumsum([0, *map(len, boxes)], dtype=np.int64),
            'boxes': _compact(np.concatenate([np.empty((0, 4), np.float32), *boxes])),
            **_pack('name', names),
            **_pack('skipped_name', [name for name, _ in skipped]),
            **_pack('skipped_reason', [reason for _, reason in skipped]),
            'digests': np.array([digests.get(image_id, 0) for image_id in image_ids.tolist()], dtype=np.uint64),
        }

    @classmethod
    def load(cls, path):
        """Maps a store into memory, after its checksum is verified.

        Args:
            path (str | Path): The file.

        Returns:
            ProposalStore: The whole store.

        Raises:
            InputError: If the file is missing, is no proposals file, was cut short or altered, or has a newer format.
        """
        arrays, checksum = read_arrays(path)
        store = cls.__new__(cls)
        store._arrays = arrays
        store._file = (os.path.abspath(path), checksum)
        if 'digests' not in arrays:  # format 1
            store._file = None
            arrays['metadata'] = _metadata(store.metadata)
            arrays['digests'] = np.zeros(len(store), dtype=np.uint64)
        return store

    def save(self, path):
        """Writes the store; ``path`` (str | Path) holds the whole of it or what it held before, never a part."""
        write_arrays(path, self._arrays)

    @property
    def image_ids(self):
        """np.ndarray: (n,) int64, ascending."""
        return self._arrays['image_ids']

    @property
    def metadata(self):
        """dict: Format, versions and parameters."""
        return json.loads(self._arrays['metadata'].tobytes())

    @functools.cached_property
    def skipped(self):
        """dict[str, str]: File name -> reason, of the photos that could not be used."""
        names, reasons = (_unpack(self._arrays, kind) for kind in ('skipped_name', 'skipped_reason'))
        return dict(zip(names, reasons, strict=True))

    @property
    def num_boxes(self):
        """np.ndarray: (n,) int64, how many boxes each photo of :attr:`image_ids` has."""
        return np.diff(self._arrays['offsets'])

    def boxes(self, image_id):
        """The proposals of one photo: a new (n, 4) float32 array of xyxy boxes in pixels; n may be 0.

        They are in a random order that the image id decides: any prefix is an unbiased sample.

        Raises:
            KeyError: If the store has no such photo.
        """
        index = self._index(image_id)
        start, end = self._arrays['offsets'][index : index + 2]
        return self._arrays['boxes'][start:end].astype(np.float32)

    def file_name(self, image_id):
        """The photo's path relative to its folder (str); raises ``KeyError`` as :meth:`boxes` does."""
        index = self._index(image_id)
        start, end = self._arrays['name_offsets'][index : index + 2]
        return _decode(self._arrays['names'][start:end])

    def id_of(self, file_name):
        """The image id (int) of a file name; raises ``KeyError`` if the store has no such photo."""
        return self._id_of[file_name]

    def size(self, image_id):
        """The photo's ``(height, width)`` in pixels; raises ``KeyError`` as :meth:`boxes` does."""
        return tuple(self._arrays['sizes'][self._index(image_id)].tolist())

    def digest(self, image_id):
        """The digest (int) of the photo's file, 0 if it is not known; raises ``KeyError`` as :meth:`boxes` does."""
        return int(self._arrays['digests'][self._index(image_id)])

    def entries(self):
        """Yields ``(image_id, file_name, (height, width), boxes)`` of each photo, in ascending order of id."""
        for image_id in self.image_ids.tolist():
            yield image_id, self.file_name(image_id), self.size(image_id), self.boxes(image_id)

    def __len__(self):
        return len(self.image_ids)

    def __contains__(self, image_id):
        return self._find(image_id) is not None

    def __getstate__(self):
        return {'_file': self._file, '_arrays': None if self._file else self._arrays}

    def __setstate__(self, state):
        self.__dict__.update(state)
        if self._file:
            self._arrays = map_again(*self._file)

    @functools.cached_property
    def _id_of(self):
        return dict(zip(_unpack(self._arrays, 'name'), self.image_ids.tolist(), strict=True))

    def _find(self, image_id):
        index = int(np.searchsorted(self.image_ids, image_id))
        return index if index < len(self) and self.image_ids[index] == image_id else None

    def _index(self, image_id):
        index = self._find(image_id)
        if index is None:
            raise KeyError(f'no proposals for image id {image_id}')
        return index


def _metadata(values):
    values = {**values, 'format': FORMAT, 'format_version': FORMAT_VERSION}
    return np.frombuffer(json.dumps(values, sort_keys=True).encode(), dtype=np.uint8)


def _compact(boxes):
    """The boxes as uint16 if that changes no number."""
    whole = ((boxes >= 0) & (boxes <= np.iinfo(np.uint16).max) & (boxes == np.floor(boxes))).all()
    return boxes.astype(np.uint16) if whole else boxes


def _pack(kind, texts):
    # surrogateescape: file names that are not UTF-8 keep the bytes they have on disk.
    encoded = [text.encode('utf-8', 'surrogateescape') for text in texts]
    return {
        f'{kind}s': np.frombuffer(b''.join(encoded), dtype=np.uint8),
        f'{kind}_offsets': np.cumsum([0, *map(len, encoded)], dtype=np.int64),
    }


def _unpack(arrays, kind):
    data, offsets = arrays[f'{kind}s'].tobytes(), arrays[f'{kind}_offsets'].tolist()
    return [
        data[start:end].decode('utf-8', 'surrogateescape') for start, end in zip(offsets, offsets[1:], strict=False)
    ]


def _decode(data):
    return data.tobytes().decode('utf-8', 'surrogateescape')
