"""Images of a data set: listing, ids, and decoding."""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ccop_mm.utils.coco_json import read_images, read_json
from ccop_mm.utils.errors import InputError

#: Suffixes of image files that OpenCV's wheels decode. Other files of a folder are ignored.
SUFFIXES = {'.avif', '.bmp', '.jp2', '.jpe', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'}


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


def list_images(source: str | Path, image_root: str | Path | None = None) -> list[ImageFile]:
    """Lists the images of a folder, a COCO json or a text file.

    A folder is searched recursively; symbolic links are followed, and hidden files and folders are ignored. Images of a
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
        list[ImageFile]: At least one image, in ascending order of the id.

    Raises:
        InputError: If the source is missing or unreadable, contains no image, or contains an id or an image twice.
    """
    source = Path(os.path.abspath(source))
    if source.is_dir():
        if image_root is not None:
            raise InputError(f'{source} is a folder of images: an image root requires a COCO json or a text file')
        images = _list_folder(source)
    elif source.suffix.lower() == '.json':
        images = _list_json(source, image_root)
    elif source.suffix.lower() == '.txt':
        images = _list_text(source, image_root)
    else:
        problem = 'is neither a folder nor a .json or .txt file' if source.exists() else 'does not exist'
        raise InputError(f'{source} {problem}: pass a folder of images, a COCO json or a text file')
    return _sorted_unique(images, source)


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
        UnreadableImageError: If the content is truncated or not an image.
    """
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flag) if content else None
    except cv2.error as error:
        raise UnreadableImageError(f'OpenCV: {error.err}') from None
    if image is None:
        raise UnreadableImageError(_why_undecodable(content))
    return image


def content_digest(content: bytes) -> int:
    """Returns the first 64 bits of the BLAKE2b hash of an image file; never 0, which stands for an unknown digest."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=32).digest()[:8], 'big') or 1


def _list_folder(root: Path) -> list[ImageFile]:
    try:
        names = [os.path.relpath(path, root).replace(os.sep, '/') for path in _walk(root, ())]
    except OSError as error:
        raise InputError(f'cannot read {error.filename}: {error.strerror}') from None
    if not names:
        raise InputError(f'{root} and its subfolders contain no images ({", ".join(sorted(SUFFIXES))})')
    return [ImageFile(image_id_from_path(name), name, root / name) for name in names]


def _walk(folder: str | Path, parents: tuple[str, ...]) -> Iterator[str]:
    """Yields the image files below a folder; ``parents`` are the real paths above it, which stop cycles of links."""
    real = os.path.realpath(folder)
    if real in parents:
        return
    for entry in os.scandir(folder):
        if entry.name.startswith('.'):
            continue
        if os.path.isdir(entry.path):  # entry.is_dir raises an error for a link that points to itself
            yield from _walk(entry.path, (*parents, real))
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            yield entry.path


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


def _why_undecodable(content: bytes) -> str:
    """Returns the reason why OpenCV does not decode a file."""
    if not content:
        return 'the file is empty'
    try:
        with Image.open(io.BytesIO(content)) as image:
            return f'truncated or damaged {image.format}'
    except Exception:  # Pillow raises various exceptions for invalid files
        return 'not a whole image of a kind that OpenCV decodes'
