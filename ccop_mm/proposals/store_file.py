"""Arrays in a file that is mapped into memory: an ``.npz`` whose members are neither compressed nor out of line."""

import hashlib
import io
import json
import mmap
import struct
import zipfile
from pathlib import Path

import numpy as np

from ccop_mm.errors import InputError
from ccop_mm.fileio import atomic_write

FORMAT = 'ccop_mm proposals'
FORMAT_VERSION = 2

# Every array of a file but its checksum, by format. Texts are UTF-8 bytes, one after another, with the n + 1 places
# where each begins and the last ends: arrays of Python strings would need pickle.
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

#: Of the data within the file: a multiple of every item size, and a processor's cache line.
ALIGNMENT = 64
#: Padding is an extra field of the zip member, which readers pass over; this number marks it (as Android's tools do).
PADDING_ID = 0xD935


def write_arrays(path, arrays):
    """Writes the arrays of the present format with their checksum; the same arrays give the same bytes.

    Args:
        path (str | Path): Holds the whole of it afterwards, or what it held before, never a part.
        arrays (dict[str, np.ndarray]): The names of ``ARRAYS[FORMAT_VERSION]``.
    """
    checksum = checksum_of(arrays, FORMAT_VERSION)
    with atomic_write(path) as file, zipfile.ZipFile(file, 'w') as archive:
        for name, array in {'checksum': checksum, **arrays}.items():
            # With the fixed date of 1980 that np.savez gives: no byte depends on the day.
            member = zipfile.ZipInfo(f'{name}.npy', date_time=(1980, 1, 1, 0, 0, 0))
            # A local header has 30 bytes, the name, this extra field of 4 bytes and more, and zip64's 20 bytes. The
            # header of an .npy is a multiple of 64 bytes already.
            begin = file.tell() + 30 + len(member.filename) + 4 + 20
            padding = -begin % ALIGNMENT
            member.extra = struct.pack('<HH', PADDING_ID, padding) + bytes(padding)
            with archive.open(member, 'w', force_zip64=True) as target:
                np.lib.format.write_array(target, np.ascontiguousarray(array), allow_pickle=False)


def read_arrays(path):
    """Maps a file into memory and verifies its checksum.

    Args:
        path (str | Path): A file of this or an older format.

    Returns:
        tuple[dict, np.ndarray]: The arrays of the file's format: those of format 2 are the file's own pages, read-only
        and shared by all processes, those of format 1 copies; and the checksum, (32,) uint8.

    Raises:
        InputError: If the file is missing, is no proposals file, was cut short or altered, or has a newer format.
    """
    if not Path(path).is_file():
        raise InputError(f'no proposals file {path}: make it with tools/propose.py')
    damaged = InputError(f'{path} was cut short or altered: make it again with tools/propose.py')
    foreign = InputError(f'{path} is not a proposals file of tools/propose.py')
    try:
        if not zipfile.is_zipfile(path):  # it lacks the directory that ends a zip file
            raise damaged if _begins_as_zip(path) else foreign
        found = _map(path)
        if 'metadata' not in found or 'checksum' not in found:
            raise foreign
        metadata = json.loads(found['metadata'].tobytes())
        if metadata['format'] != FORMAT:
            raise foreign
        version = metadata['format_version']
        if version > FORMAT_VERSION:
            raise InputError(f'{path} is of format {version}: update ccop_mm to read it')
        arrays = {name: found[name] for name in ARRAYS[version]}
        checksum = found['checksum']
        whole = np.array_equal(checksum, checksum_of(arrays, version))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f'cannot read {path}: {error.strerror or error}') from None
    except Exception:  # zipfile, numpy and json each have several of their own for bytes that make no sense
        raise damaged from None
    if not whole:
        raise damaged
    return arrays, checksum


def checksum_of(arrays, version):
    """(32,) uint8, the BLAKE2b of the name, type, shape and bytes of every array of a format."""
    digest = hashlib.blake2b(digest_size=32)
    for name in ARRAYS[version]:
        array = np.ascontiguousarray(arrays[name])
        digest.update(f'{name} {array.dtype.str} {array.shape}'.encode())
        digest.update(array.data)
    return np.frombuffer(digest.digest(), dtype=np.uint8)


def map_again(path, checksum):
    """Maps a file that this or another process has verified.

    Args:
        path (str | Path): The file.
        checksum (np.ndarray): What :func:`read_arrays` returned then.

    Returns:
        dict: As :func:`read_arrays`. The content is not read again; that it is the same file, the checksum in it tells.

    Raises:
        InputError: If the file is gone or another.
    """
    try:
        arrays = _map(path)
        same = np.array_equal(arrays.pop('checksum'), checksum)
    except Exception:  # as above
        same = False
    if not same:
        raise InputError(f'{path} was changed or removed while it was in use: start again')
    return arrays


def _begins_as_zip(path):
    with open(path, 'rb') as file:
        return file.read(2) == b'PK'


def _map(path):
    """name -> array of the file's members; aligned ones are views of its pages."""
    with zipfile.ZipFile(path) as archive, open(path, 'rb') as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return {member.filename.removesuffix('.npy'): _array(pages, member) for member in archive.infolist()}


def _array(pages, member):
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError('compressed')
    name_length, extra_length = struct.unpack_from('<HH', pages, member.header_offset + 26)
    begin = member.header_offset + 30 + name_length + extra_length
    header = io.BytesIO(pages[begin : begin + 4096])
    if np.lib.format.read_magic(header) != (1, 0):
        raise ValueError('not the .npy version of plain arrays')
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(header)
    if (
        dtype.hasobject
        or fortran_order
        or header.tell() + dtype.itemsize * np.prod(shape, dtype=int) != member.file_size
    ):
        raise ValueError('not a plain array of this size')
    # Requires the buffer to hold it; np.load would read it all into memory.
    array = np.ndarray(shape, dtype, buffer=pages, offset=begin + header.tell())
    return np.require(array, requirements='A')
