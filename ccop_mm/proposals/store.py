"""The proposals file: boxes by image id."""

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ccop_mm.proposals.npz_mmap import FORMAT, FORMAT_VERSION, map_again, read_arrays, write_arrays
from ccop_mm.utils.errors import InputError

#: ``(image_id, file_name, (height, width), boxes)`` of one image.
Entry = tuple[int, str, tuple[int, int], np.ndarray]


class ProposalStore:
    """Proposals of many images, by image id.

    The file is an uncompressed ``.npz`` without pickle. It contains the image ids in ascending order, the boxes of all
    images in that order, file names, sizes, digests of the image files, the skipped images with the reason, metadata as
    JSON, and a BLAKE2b checksum of everything. The same content gives the same bytes, in any order of entries.

    A loaded store is a read-only memory map of the file, which all processes of a machine share. Pickling it, for
    example for the spawned workers of a data loader, stores the path; unpickling maps the file again.

    Args:
        entries (Iterable[tuple]): ``(image_id, file_name, (height, width), boxes)`` of each image. Boxes are (n, 4)
            xyxy in pixels of the image as :func:`~ccop_mm.proposals.load_image` returns it; n may be 0. They are stored
            as float32, or as uint16 if all of them are whole pixels, which changes no value.
        skipped (Mapping[str, str]): File name -> reason, of the images that could not be used.
        metadata (Mapping[str, Any]): How the boxes were generated; JSON values only.
        digests (Mapping[int, int]): Image id -> :func:`~ccop_mm.utils.images.content_digest` of its file, where known.

    Raises:
        ValueError: If an image id or a file name occurs twice.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        skipped: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        digests: Mapping[int, int] | None = None,
    ) -> None:
        entries = sorted(entries, key=lambda entry: entry[0])
        image_ids = np.array([entry[0] for entry in entries], dtype=np.int64)
        names = [entry[1] for entry in entries]
        if (np.diff(image_ids) == 0).any() or len(set(names)) < len(names):
            raise ValueError('an image id or a file name occurs twice')
        boxes = [np.asarray(entry[3], dtype=np.float32).reshape(-1, 4) for entry in entries]
        digests = digests or {}
        skipped_items = sorted((skipped or {}).items())
        self._file: tuple[str, np.ndarray] | None = None
        self._arrays: dict[str, np.ndarray] = {
            'metadata': _encode_metadata(metadata or {}),
            'image_ids': image_ids,
            'sizes': np.array([entry[2] for entry in entries], dtype=np.int32).reshape(-1, 2),
            'offsets': np.cumsum([0, *map(len, boxes)], dtype=np.int64),
            'boxes': _to_uint16_if_exact(np.concatenate([np.empty((0, 4), np.float32), *boxes])),
            **_pack_texts('name', names),
            **_pack_texts('skipped_name', [name for name, _ in skipped_items]),
            **_pack_texts('skipped_reason', [reason for _, reason in skipped_items]),
            'digests': np.array([digests.get(image_id, 0) for image_id in image_ids.tolist()], dtype=np.uint64),
        }

    @classmethod
    def load(cls, path: str | Path) -> 'ProposalStore':
        """Verifies the checksum of a proposals file and maps it into memory.

        Args:
            path (str | Path): Proposals file.

        Returns:
            ProposalStore: The complete store.

        Raises:
            InputError: If the file is missing, is not a proposals file, is truncated or modified, or has a newer
                format.
        """
        arrays, checksum = read_arrays(path)
        store = cls.__new__(cls)
        store._arrays = arrays
        store._file = (os.path.abspath(path), checksum)
        if 'digests' not in arrays:  # format 1
            store._file = None
            arrays['metadata'] = _encode_metadata(store.metadata)
            arrays['digests'] = np.zeros(len(store), dtype=np.uint64)
        return store

    def save(self, path: str | Path) -> None:
        """Writes the store atomically.

        Args:
            path (str | Path): File to write; an existing file is replaced once the new one is complete.
        """
        write_arrays(path, self._arrays)

    @property
    def image_ids(self) -> np.ndarray:
        """np.ndarray: (n,) int64, ascending."""
        return self._arrays['image_ids']

    @property
    def metadata(self) -> dict[str, Any]:
        """dict: Format, versions and settings."""
        return json.loads(self._arrays['metadata'].tobytes())

    @functools.cached_property
    def skipped(self) -> dict[str, str]:
        """dict[str, str]: File name -> reason, of the images that could not be used."""
        names, reasons = (_unpack_texts(self._arrays, kind) for kind in ('skipped_name', 'skipped_reason'))
        return dict(zip(names, reasons, strict=True))

    @property
    def num_boxes(self) -> np.ndarray:
        """np.ndarray: (n,) int64, number of boxes of each image in :attr:`image_ids`."""
        return np.diff(self._arrays['offsets'])

    def boxes(self, image_id: int) -> np.ndarray:
        """Returns the proposals of one image.

        They are in a random order that the image id determines: any prefix is an unbiased sample.

        Args:
            image_id (int): Image id.

        Returns:
            np.ndarray: (n, 4) float32 xyxy boxes in pixels, a copy; n may be 0.

        Raises:
            KeyError: If the store does not contain the image.
        """
        index = self._index(image_id)
        start, end = self._arrays['offsets'][index : index + 2]
        return self._arrays['boxes'][start:end].astype(np.float32)

    def file_name(self, image_id: int) -> str:
        """Returns the path of an image relative to the image root; raises ``KeyError`` for an unknown id."""
        index = self._index(image_id)
        start, end = self._arrays['name_offsets'][index : index + 2]
        return _decode_text(self._arrays['names'][start:end].tobytes())

    def image_id(self, file_name: str) -> int:
        """Returns the image id of a file name; raises ``KeyError`` for an unknown name."""
        return self._image_id_by_name[file_name]

    def size(self, image_id: int) -> tuple[int, int]:
        """Returns ``(height, width)`` of an image in pixels; raises ``KeyError`` for an unknown id."""
        height, width = self._arrays['sizes'][self._index(image_id)].tolist()
        return height, width

    def digest(self, image_id: int) -> int:
        """Returns the digest of an image file, 0 if it is not known; raises ``KeyError`` for an unknown id."""
        return int(self._arrays['digests'][self._index(image_id)])

    def entries(self) -> Iterator[Entry]:
        """Yields ``(image_id, file_name, (height, width), boxes)`` of each image, in ascending order of the id."""
        for image_id in self.image_ids.tolist():
            yield image_id, self.file_name(image_id), self.size(image_id), self.boxes(image_id)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __contains__(self, image_id: int) -> bool:
        return self._find(image_id) is not None

    def __getstate__(self) -> dict[str, Any]:
        return {'_file': self._file, '_arrays': None if self._file else self._arrays}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._file:
            self._arrays = map_again(*self._file)

    @functools.cached_property
    def _image_id_by_name(self) -> dict[str, int]:
        return dict(zip(_unpack_texts(self._arrays, 'name'), self.image_ids.tolist(), strict=True))

    def _find(self, image_id: int) -> int | None:
        index = int(np.searchsorted(self.image_ids, image_id))
        return index if index < len(self) and self.image_ids[index] == image_id else None

    def _index(self, image_id: int) -> int:
        index = self._find(image_id)
        if index is None:
            raise KeyError(f'no proposals for image id {image_id}')
        return index


def load_proposals(path: str | Path, allow_ground_truth: bool = False) -> ProposalStore:
    """Reads proposals for training from a proposals file or a COCO json.

    Args:
        path (str | Path): Proposals file, or ``*.json``.
        allow_ground_truth (bool): Whether ground-truth boxes are accepted, for an upper bound (the paper's Table 5).

    Returns:
        ProposalStore: The proposals.

    Raises:
        InputError: If the file is invalid, contains a box that is not finite, or contains ground-truth boxes and these
            are not accepted.
    """
    if str(path).endswith('.json'):
        from ccop_mm.proposals.coco_format import import_coco  # which imports this module

        store = import_coco(path)
    else:
        store = ProposalStore.load(path)
    if store.metadata.get('method') == 'ground-truth' and not allow_ground_truth:
        raise InputError(
            f'{path} contains ground-truth boxes, which are not self-supervised: generate proposals with '
            'tools/propose.py, or set allow_ground_truth=True for an upper bound; import the proposals of another tool '
            'with `tools/propose.py import --proposals`'
        )
    _check_finite(store, path)
    return store


def _check_finite(store: ProposalStore, path: str | Path) -> None:
    """Raises :class:`InputError` if a box is not finite, which earlier releases did not check on import."""
    boxes = store._arrays['boxes']
    if boxes.dtype.kind != 'f':  # whole pixels are stored as integers
        return
    finite = np.isfinite(boxes).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        image_id = int(store.image_ids[np.searchsorted(store._arrays['offsets'], row, side='right') - 1])
        raise InputError(
            f'{path} contains {int((~finite).sum())} boxes that are not finite, the first is {boxes[row].tolist()} of '
            f'the image id {image_id}: import them again with `tools/propose.py import`, which drops such boxes'
        )


def _encode_metadata(values: Mapping[str, Any]) -> np.ndarray:
    """Encodes metadata and the current format as the bytes of a JSON text."""
    values = {**values, 'format': FORMAT, 'format_version': FORMAT_VERSION}
    return np.frombuffer(json.dumps(values, sort_keys=True).encode(), dtype=np.uint8)


def _to_uint16_if_exact(boxes: np.ndarray) -> np.ndarray:
    """Converts boxes to uint16 if that changes no value."""
    exact = ((boxes >= 0) & (boxes <= np.iinfo(np.uint16).max) & (boxes == np.floor(boxes))).all()
    return boxes.astype(np.uint16) if exact else boxes


def _pack_texts(kind: str, texts: list[str]) -> dict[str, np.ndarray]:
    """Stores texts as one array of UTF-8 bytes and the offsets of each text."""
    # surrogateescape preserves the bytes of file names that are not valid UTF-8.
    encoded = [text.encode('utf-8', 'surrogateescape') for text in texts]
    return {
        f'{kind}s': np.frombuffer(b''.join(encoded), dtype=np.uint8),
        f'{kind}_offsets': np.cumsum([0, *map(len, encoded)], dtype=np.int64),
    }


def _unpack_texts(arrays: Mapping[str, np.ndarray], kind: str) -> list[str]:
    """Restores texts from :func:`_pack_texts`."""
    data, offsets = arrays[f'{kind}s'].tobytes(), arrays[f'{kind}_offsets'].tolist()
    return [_decode_text(data[start:end]) for start, end in zip(offsets, offsets[1:], strict=False)]


def _decode_text(data: bytes) -> str:
    return data.decode('utf-8', 'surrogateescape')
