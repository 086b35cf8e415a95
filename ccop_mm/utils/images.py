"""Images of a data set: listing, ids, and decoding."""

import functools
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from ccop_mm.utils.coco_json import read_images, read_json
from ccop_mm.utils.errors import InputError

#: Suffixes of image files that OpenCV's wheels decode.
SUFFIXES = {'.avif', '.bmp', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'}

#: Suffixes of image files that are decoded if the package pillow-heif is installed.
HEIF_SUFFIXES = {'.heic', '.heif', '.hif'}

#: Suffixes of image files that are not read. They are counted, unlike other files of a folder.
OTHER_SUFFIXES = {
    *('.3fr', '.apng', '.arw', '.cr2', '.cr3', '.dcm', '.dds', '.dng', '.emf', '.eps', '.exr', '.gif', '.hdr', '.icns'),
    *('.ico', '.j2k', '.jif', '.jpf', '.jpx', '.jxl', '.nef', '.orf', '.pam', '.pbm', '.pcx', '.pef', '.pfm', '.pnm'),
    *('.psd', '.raf', '.raw', '.rw2', '.srw', '.svg', '.tga', '.wbmp', '.wmf', '.xbm', '.xpm'),
}

#: Kinds of files that are passed over but have no suffix of their own, see :class:`ImageList`.
NO_SUFFIX, LINK = 'without suffix', 'linked twice'

#: First bytes of common image formats.
_SIGNATURES = (b'\xff\xd8\xff', b'\x89PNG\r\n', b'GIF8', b'II*\0', b'MM\0*')

#: Brands of HEIF files that are coded with HEVC. AVIF files, which OpenCV decodes, have others.
_HEIF_BRANDS = {b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'hevm', b'hevs', b'mif1', b'msf1'}

#: Factors of the flags that decode at a smaller size.
_REDUCTIONS = {cv2.IMREAD_REDUCED_COLOR_2: 2, cv2.IMREAD_REDUCED_COLOR_4: 4, cv2.IMREAD_REDUCED_COLOR_8: 8}


@dataclass(frozen=True)
class ImageFile:
    """An image of a source.

    Args:
        image_id (int): Image id, unique in the source and at least 0.
        file_name (str): Path relative to the folder of the source, with forward slashes.
        path (Path): Absolute path.
    """

    image_id: int
    file_name: str
    path: Path

    def __str__(self) -> str:
        return self.file_name


class ImageList(list[ImageFile]):
    """Images of a source, and the number of files of its folder that look like images but are not among them.

    Attributes:
        passed_over (dict[str, int]): Number of files by kind: a suffix that is not read, :data:`NO_SUFFIX`, or
            :data:`LINK`, a symbolic link to an image that is listed under another path.
    """

    def __init__(self, images: Iterable[ImageFile] = (), passed_over: Mapping[str, int] | None = None) -> None:
        super().__init__(images)
        self.passed_over = dict(passed_over or {})


class UnreadableImageError(Exception):
    """An image cannot be used. The message is the reason without the file name, and is stored in proposals files."""


def image_id_from_path(relative_path: str | os.PathLike[str]) -> int:
    """Computes the id of an image in a folder, a number below 2^48 that depends on its relative path only.

    Ids therefore stay the same when other images are added or removed. The probability that two of 118,000 paths have
    the same id is 2.5e-5; :func:`list_images` raises an error in that case.

    Args:
        relative_path (str | PurePath): Path relative to the folder.

    Returns:
        int: The first 48 bits of the BLAKE2b hash of the path with forward slashes.
    """
    posix = os.fspath(relative_path).replace(os.sep, '/')
    # surrogateescape: names that are not valid UTF-8 are hashed as their bytes on disk.
    digest = hashlib.blake2b(posix.encode('utf-8', 'surrogateescape'), digest_size=32).digest()
    return int.from_bytes(digest[:6], 'big')


def list_images(source: str | Path, image_root: str | Path | None = None) -> ImageList:
    """Lists the images of a folder, a COCO json or a text file.

    A folder is searched recursively; symbolic links are followed, and hidden files and folders are ignored. An image
    that is found under several paths is listed once, under a path without links if there is one. Images of a
    json or a text file need not exist: a missing file is reported when it is read.

    Args:
        source (str | Path): Folder, COCO json (``*.json``), or text file (``*.txt``) with one path per line, in which
            empty lines and lines that start with ``#`` are ignored. Ids of a text file are those of the same paths in a
            folder.
        image_root (str | Path | None): Folder that the ``file_name`` entries of the json, or the paths of the text
            file, are relative to. Defaults to the folder of the text file. For a json, defaults to the first of these
            folders that contains one of its images: ``images`` beside the json or beside its folder, the folder beside
            its folder that has the last part of the json's name (``annotations/instances_train2017.json`` ->
            ``train2017``), the json's own folder.

    Returns:
        ImageList: At least one image, in ascending order of the id, and the number of files passed over.

    Raises:
        InputError: If the source is missing or unreadable, contains no image, or contains an id or an image twice.
    """
    source = Path(os.path.abspath(source))
    passed_over: Counter[str] = Counter()
    if source.is_dir():
        if image_root is not None:
            raise InputError(f'{source} is a folder of images: an image root requires a COCO json or a text file')
        images = _list_folder(source, passed_over)
    elif source.suffix.lower() == '.json':
        images = _list_json(source, image_root)
    elif source.suffix.lower() == '.txt':
        images = _list_text(source, image_root)
    else:
        problem = 'is neither a folder nor a .json or .txt file' if source.exists() else 'does not exist'
        raise InputError(f'{source} {problem}: pass a folder of images, a COCO json or a text file')
    return ImageList(_sorted_unique(images, source), passed_over)


def format_passed_over(passed_over: Mapping[str, int]) -> str:
    """Formats the counts of an :class:`ImageList`, largest first; '' if there are none."""
    kinds = sorted(passed_over, key=lambda kind: (-passed_over[kind], kind))
    text = ', '.join(f'{passed_over[kind]} {kind}' for kind in kinds)
    return f'{text} (reading HEIF requires: pip install pillow-heif)' if HEIF_SUFFIXES & set(kinds) else text


def load_image(path: str | Path) -> tuple[np.ndarray, int]:
    """Reads an image as the training pipeline does (mmcv's ``LoadImageFromFile``), with the EXIF orientation applied.

    The file is decoded from memory, not by ``cv2.imread``: for a truncated JPEG, ``imread`` returns an image whose
    missing part is gray, without an error, while ``imdecode`` fails.

    Args:
        path (str | Path): Image file.

    Returns:
        tuple[np.ndarray, int]: (H, W, 3) uint8 in BGR order, and the size of the file in bytes.

    Raises:
        UnreadableImageError: If the file is missing, unreadable, truncated or not an image.
    """
    content = read_image_bytes(path)
    return decode_image(content), len(content)


def read_image_bytes(path: str | Path) -> bytes:
    """Reads an image file; raises :class:`UnreadableImageError` if it is missing or unreadable."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UnreadableImageError('the file does not exist') from None
    except OSError as error:
        raise UnreadableImageError(f'cannot be read: {error.strerror}') from None


def decode_image(content: bytes, flag: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Decodes an image file, with the pixels of ``mmcv.imfrombytes`` and its backend ``'cv2'``.

    Args:
        content (bytes): Content of the file.
        flag (int): Flag of ``cv2.imdecode``; ``IMREAD_REDUCED_COLOR_*`` decodes at a smaller size.

    Returns:
        np.ndarray: (H, W, 3) uint8 in BGR order.

    Raises:
        UnreadableImageError: If the content is truncated, is not an image, or is a HEIF file and pillow-heif is not
            installed.
    """
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flag) if content else None
    except cv2.error as error:
        raise UnreadableImageError(f'OpenCV: {error.err}') from None
    if image is not None:
        return image
    if _is_heif(content):
        return _decode_heif(content, _REDUCTIONS.get(flag, 1))
    raise UnreadableImageError(_why_undecodable(content))


def count_value_bits(content: bytes) -> int:
    """Returns the number of bits that the largest value of a 16-bit PNG or TIFF file needs.

    Images are read as 8 bits, of which the upper 8 bits of 16 are used. An image of 12 bits is therefore read as nearly
    black, unless its values were multiplied by 16.

    Args:
        content (bytes): Content of an image file.

    Returns:
        int: At most 16; 0 for an image that is black or not of 16 bits.
    """
    is_png16 = content[:4] == b'\x89PNG' and content[24:25] == b'\x10'
    if not is_png16 and content[:4] not in (b'II*\0', b'MM\0*'):
        return 0
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:
        return 0
    return int(image.max()).bit_length() if image is not None and image.dtype == np.uint16 else 0


def content_digest(content: bytes) -> int:
    """Returns the first 64 bits of the BLAKE2b hash of an image file; never 0, which stands for an unknown digest."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=32).digest()[:8], 'big') or 1


def _list_folder(root: Path, passed_over: Counter[str]) -> list[ImageFile]:
    names: list[str] = []
    real_paths: dict[str, str] = {}  # of the files that are found through links
    try:
        for path, real in _walk(root, (), False, passed_over):
            name = os.path.relpath(path, root).replace(os.sep, '/')
            if real:
                real_paths[name] = real
            else:
                names.append(name)
    except OSError as error:
        raise InputError(f'cannot read {error.filename}: {error.strerror}') from None
    listed = {os.path.join(os.path.realpath(root), name) for name in names} if real_paths else set()
    for name in sorted(real_paths):
        if real_paths[name] in listed:
            passed_over[LINK] += 1
        else:
            listed.add(real_paths[name])
            names.append(name)
    if not names:
        others = f', only {format_passed_over(passed_over)}' if passed_over else ''
        raise InputError(f'{root} and its subfolders contain no images ({", ".join(sorted(SUFFIXES))}){others}')
    return [ImageFile(image_id_from_path(name), name, root / name) for name in names]


def _walk(
    folder: str | Path, parents: tuple[str, ...], linked: bool, passed_over: Counter[str]
) -> Iterator[tuple[str, str]]:
    """Yields the image files below a folder.

    Args:
        folder (str | Path): Folder to list.
        parents (tuple[str, ...]): Real paths of the folders above it, which stop cycles of links.
        linked (bool): Whether the folder was found through a link.
        passed_over (Counter): Updated with the kinds of the other files.

    Yields:
        tuple[str, str]: Path, and real path if the file was found through a link, otherwise ''.
    """
    real = os.path.realpath(folder)
    if real in parents:
        return
    for entry in os.scandir(folder):
        if entry.name.startswith('.'):
            continue
        if os.path.isdir(entry.path):  # entry.is_dir raises an error for a link that points to itself
            yield from _walk(entry.path, (*parents, real), linked or entry.is_symlink(), passed_over)
            continue
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix in SUFFIXES or (suffix in HEIF_SUFFIXES and _can_read_heif()):
            if entry.is_symlink():
                yield entry.path, os.path.realpath(entry.path)
            else:
                yield entry.path, os.path.join(real, entry.name) if linked else ''
        elif suffix in HEIF_SUFFIXES or suffix in OTHER_SUFFIXES:
            passed_over[suffix] += 1
        elif not suffix and _has_image_signature(entry.path):
            passed_over[NO_SUFFIX] += 1


def _has_image_signature(path: str) -> bool:
    if not os.path.isfile(path):  # opening a named pipe would wait for its writer
        return False
    try:
        with open(path, 'rb') as file:
            head = file.read(16)
    except OSError:
        return False
    return (
        head.startswith(_SIGNATURES)
        or (head[:2] == b'BM' and head[6:10] == bytes(4))
        or (head[:4] == b'RIFF' and head[8:12] == b'WEBP')
        or (head[4:8] == b'ftyp' and head[8:12] in {*_HEIF_BRANDS, b'avif'})
    )


def _list_json(path: Path, image_root: str | Path | None) -> list[ImageFile]:
    entries = read_images(read_json(path), path)
    root = _guess_image_root(path, entries) if image_root is None else _existing_root(image_root)
    return [ImageFile(entry['id'], entry['file_name'], root / entry['file_name']) for entry in entries]


def _list_text(path: Path, image_root: str | Path | None) -> list[ImageFile]:
    root = _existing_root(path.parent if image_root is None else image_root)
    try:
        lines = [line.strip() for line in os.fsdecode(path.read_bytes()).removeprefix('\ufeff').splitlines()]
    except OSError as error:
        raise InputError(f'cannot read {path}: {error.strerror}') from None
    names = [_relative_name(root, line, path) for line in lines if line and not line.startswith('#')]
    if not names:
        raise InputError(f'{path} lists no images: write one path per line')
    return [ImageFile(image_id_from_path(name), name, root / name) for name in names]


def _existing_root(image_root: str | Path) -> Path:
    root = Path(os.path.abspath(image_root))
    if not root.is_dir():
        raise InputError(f'the image root {root} is not a folder')
    return root


def _relative_name(root: Path, line: str, path: Path) -> str:
    """Converts a line of a text file to a path relative to the image root."""
    name = os.path.relpath(root / line, root).replace(os.sep, '/')
    if name.startswith('../'):
        raise InputError(f'{path}: {line!r} is not below {root}: pass the folder of the images (--image-root)')
    return name


def _guess_image_root(path: Path, entries: Sequence[Mapping[str, Any]]) -> Path:
    folder = path.parent
    candidates = [folder / 'images', folder.parent / 'images', folder.parent / path.stem.split('_')[-1], folder]
    for root in candidates:
        if any((root / entry['file_name']).is_file() for entry in entries):
            return root
    raise InputError(
        f'none of the images of {path} is in {", ".join(map(str, candidates))}: pass their folder (--image-root)'
    )


def _sorted_unique(images: list[ImageFile], source: Path) -> list[ImageFile]:
    """Sorts images by id; raises :class:`InputError` if an id or a file name occurs twice."""
    images = sorted(images, key=lambda image: (image.image_id, image.file_name))
    for image, following in zip(images, images[1:], strict=False):
        if image.image_id == following.image_id and image.file_name != following.file_name:
            raise InputError(
                f'{source}: {image.file_name!r} and {following.file_name!r} have the same id {image.image_id}: rename '
                'one of them, or change its id'
            )
    (name, count), *_ = Counter(image.file_name for image in images).most_common(1)
    if count > 1:
        raise InputError(f'{source} lists {name!r} {count} times: remove all but one')
    return images


def _is_heif(content: bytes) -> bool:
    return content[4:8] == b'ftyp' and content[8:12] in _HEIF_BRANDS


@functools.cache
def _can_read_heif() -> bool:
    """Returns whether pillow-heif is installed, and registers it with Pillow."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _decode_heif(content: bytes, reduction: int) -> np.ndarray:
    """Decodes a HEIF file to (H, W, 3) uint8 in BGR order, with its orientation applied."""
    if not _can_read_heif():
        raise UnreadableImageError('a HEIF image, which requires the package pillow-heif: pip install pillow-heif')
    try:
        with Image.open(io.BytesIO(content)) as image:
            upright = ImageOps.exif_transpose(image).convert('RGB')
    except Exception:  # Pillow raises various exceptions for invalid files
        raise UnreadableImageError(_why_undecodable(content)) from None
    if reduction > 1:
        upright = upright.reduce(reduction)
    return np.ascontiguousarray(np.asarray(upright)[..., ::-1])


def _why_undecodable(content: bytes) -> str:
    """Returns the reason why OpenCV does not decode a file."""
    if not content:
        return 'the file is empty'
    try:
        with Image.open(io.BytesIO(content)) as image:
            return f'truncated or damaged {image.format}'
    except Exception:  # Pillow raises various exceptions for invalid files
        return 'not a whole image of a kind that OpenCV decodes'
