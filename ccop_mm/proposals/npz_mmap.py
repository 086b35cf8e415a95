"""Memory-mapped ``.npz`` files whose members are uncompressed and aligned."""

import hashlib
import io
import json
import mmap
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write

FORMAT = 'ccop_mm proposals'
FORMAT_VERSION = 2

# All arrays of a file but its checksum, by format. Texts are concatenated UTF-8 bytes with n + 1 offsets, because
# arrays of Python strings would require pickle.
_ARRAYS_1 = (
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
ARRAYS = {1: _ARRAYS_1, 2: (*_ARRAYS_1, 'digests')}

#: Alignment in bytes of the data within the file: a multiple of every item size, and the size of a cache line.
ALIGNMENT = 64
#: Id of the zip member's extra field that holds the padding; readers ignore it. Android's zipalign uses the same id.
PADDING_ID = 0xD935


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays of the current format and their checksum atomically; the same arrays give the same bytes.

    Args:
        path (str | Path): File to write; an existing file is replaced once the new one is complete.
        arrays (Mapping[str, np.ndarray]): Arrays by the names in ``ARRAYS[FORMAT_VERSION]``.
    """
    checksum = arrays_checksum(arrays, FORMAT_VERSION)
    with atomic_write(path) as file, zipfile.ZipFile(file, 'w') as archive:
        for name, array in {'checksum': checksum, **arrays}.items():
            # The fixed date of 1980 that np.savez writes, so that no byte depends on the day.
            member = zipfile.ZipInfo(f'{name}.npy', date_time=(1980, 1, 1, 0, 0, 0))
            # The data starts after the local header of 30 bytes, the name, the header of this extra field (4 bytes),
            # the zip64 field (20 bytes) and the .npy header, which is a multiple of 64 bytes already.
            begin = file.tell() + 30 + len(member.filename) + 4 + 20
            padding = -begin % ALIGNMENT
            member.extra = struct.pack('<HH', PADDING_ID, padding) + bytes(padding)
            with archive.open(member, 'w', force_zip64=True) as target:
                np.lib.format.write_array(target, np.ascontiguousarray(array), allow_pickle=False)


def read_arrays(path: str | Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Maps a file into memory and verifies its checksum.

    Args:
        path (str | Path): File of the current or an older format.

    Returns:
        tuple[dict[str, np.ndarray], np.ndarray]: The arrays of the file's format, and the (32,) uint8 checksum. Arrays
        of format 2 are read-only views of the file's pages, shared by all processes; those of format 1 are copies.

    Raises:
        InputError: If the file is missing, is not a proposals file, is truncated or modified, or has a newer format.
    """
    if not Path(path).is_file():
        raise InputError(f'no proposals file {path}: generate it with tools/propose.py')
    damaged = InputError(f'{path} is truncated or modified: generate it again with tools/propose.py')
    foreign = InputError(f'{path} is not a proposals file of tools/propose.py')
    try:
        if not zipfile.is_zipfile(path):  # the central directory at the end is missing
            raise damaged if _starts_as_zip(path) else foreign
        found = _map(path)
        if 'metadata' not in found or 'checksum' not in found:
            raise foreign
        metadata = json.loads(found['metadata'].tobytes())
        if metadata['format'] != FORMAT:
            raise foreign
        version = metadata['format_version']
        if version > FORMAT_VERSION:
            raise InputError(f'{path} has format version {version}: update ccop_mm to read it')
        arrays = {name: found[name] for name in ARRAYS[version]}
        checksum = found['checksum']
        intact = np.array_equal(checksum, arrays_checksum(arrays, version))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f'cannot read {path}: {error.strerror or error}') from None
    except Exception:  # zipfile, numpy and json raise various exceptions for invalid bytes
        raise damaged from None
    if not intact:
        raise damaged
    return arrays, checksum


def arrays_checksum(arrays: Mapping[str, np.ndarray], version: int) -> np.ndarray:
    """Computes the (32,) uint8 BLAKE2b checksum of the name, type, shape and bytes of every array of a format."""
    digest = hashlib.blake2b(digest_size=32)
    for name in ARRAYS[version]:
        array = np.ascontiguousarray(arrays[name])
        digest.update(f'{name} {array.dtype.str} {array.shape}'.encode())
        digest.update(array.data)
    return np.frombuffer(digest.digest(), dtype=np.uint8)


def map_again(path: str | Path, checksum: np.ndarray) -> dict[str, np.ndarray]:
    """Maps a file that this or another process has verified.

    Args:
        path (str | Path): File.
        checksum (np.ndarray): Checksum that :func:`read_arrays` returned.

    Returns:
        dict[str, np.ndarray]: As :func:`read_arrays`. The stored checksum is compared, but the content is not read.

    Raises:
        InputError: If the file was removed or replaced.
    """
    try:
        arrays = _map(path)
        unchanged = np.array_equal(arrays.pop('checksum'), checksum)
    except Exception:  # as in read_arrays
        unchanged = False
    if not unchanged:
        raise InputError(f'{path} was modified or removed while it was in use: run the command again')
    return arrays


def _starts_as_zip(path: str | Path) -> bool:
    with open(path, 'rb') as file:
        return file.read(2) == b'PK'


def _map(path: str | Path) -> dict[str, np.ndarray]:
    """Maps the members of a file by name; aligned arrays are views of its pages."""
    with zipfile.ZipFile(path) as archive, open(path, 'rb') as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return {member.filename.removesuffix('.npy'): _view(pages, member) for member in archive.infolist()}


def _view(pages: mmap.mmap, member: zipfile.ZipInfo) -> np.ndarray:
    """Creates the array of a zip member on the mapped pages of the file; np.load would read it into memory."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError('compressed')
    name_length, extra_length = struct.unpack_from('<HH', pages, member.header_offset + 26)
    begin = member.header_offset + 30 + name_length + extra_length
    header = io.BytesIO(pages[begin : begin + 4096])
    if np.lib.format.read_magic(header) != (1, 0):
        raise ValueError('unexpected version of the .npy format')
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(header)
    size = header.tell() + dtype.itemsize * int(np.prod(shape, dtype=int))
    if dtype.hasobject or fortran_order or size != member.file_size:
        raise ValueError('not a plain array of this size')
    array: np.ndarray = np.ndarray(shape, dtype, buffer=pages, offset=begin + header.tell())
    return np.require(array, requirements='A')
