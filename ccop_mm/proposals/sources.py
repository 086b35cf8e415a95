"""The photos of a data set: which there are, what their ids are, and how one is read."""

import hashlib
import io
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import mmcv
from PIL import Image

from ccop_mm.errors import InputError

# What OpenCV's wheels decode and people keep photos in; other files of a folder are not photos and are passed over.
SUFFIXES = {'.avif', '.bmp', '.jp2', '.jpe', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'}


@dataclass(frozen=True)
class Photo:
    """One photo of a source.

    Args:
        image_id (int): Its id, unique in the source and at least 0.
        file_name (str): Its path relative to the source's folder, with forward slashes.
        path (Path): Where it lies, as an absolute path.
    """

    image_id: int
    file_name: str
    path: Path

    def __str__(self):
        return self.file_name


class BadPhoto(Exception):
    """A photo that cannot be used; the message is the reason, without the file's name."""


def image_id_of(relative_path):
    """The id of a photo in a folder: a number below 2^48 that depends on its relative path alone.

    So no photo's id changes when others come or go. Two of 118,000 paths share an id with a probability of 2.5e-5, and
    :func:`list_photos` refuses a folder in which that happens.

    Args:
        relative_path (str | PurePath): Path relative to the folder.

    Returns:
        int: The first 48 bits of the BLAKE2b hash of the path with forward slashes.
    """
    posix = os.fspath(relative_path).replace(os.sep, '/')
    # surrogateescape: names that are not UTF-8 are hashed as the bytes they are on disk.
    digest = hashlib.blake2b(posix.encode('utf-8', 'surrogateescape'), digest_size=32).digest()
    return int.from_bytes(digest[:6], 'big')


def list_photos(source, image_root=None):
    """Lists the photos of a folder, of a COCO json or of a text list.

    A folder is searched with its subfolders, links included; hidden files and folders are passed over. The photos of a
    json or list need not exist: an absent one is skipped, and named, when it is read.

    Args:
        source (str | Path): A folder, a COCO annotation file (``*.json``), or a list (``*.txt``) of a path a line, in
            which empty lines and those that begin with ``#`` do not count. Ids of a list are those of the same paths in
            a folder.
        image_root (str | Path | None): The folder that the json's ``file_name`` entries, or the list's paths, are
            relative to. By default a list's own folder; for a json ``images`` beside it or beside its folder, or the
            folder there that bears the json's own name (``annotations/instances_train2017.json`` -> ``train2017``), the
            first that holds a photo of the json.

    Returns:
        list[Photo]: At least one photo, in ascending order of id.

    Raises:
        InputError: If the source is missing or unreadable, holds no photo, gives two photos one id, or one photo twice.
    """
    source = Path(os.path.abspath(source))
    if source.is_dir():
        if image_root is not None:
            raise InputError(f'{source} is a folder of photos: an image root goes with a COCO json or a list')
        photos = _list_folder(source)
    elif source.suffix.lower() == '.json':
        photos = _list_json(source, image_root)
    elif source.suffix.lower() == '.txt':
        photos = _list_text(source, image_root)
    else:
        what = 'is neither a folder nor a .json or .txt file' if source.exists() else 'does not exist'
        raise InputError(f'{source} {what}: give a folder of photos, a COCO json or a text list')
    return _unique(photos, source)


def load_photo(path):
    """Reads a photo exactly as the training pipeline does (``LoadImageFromFile``): EXIF orientation applied.

    The file is decoded from memory, never by ``cv2.imread``: of a cut-off JPEG ``imread`` makes a photo that is grey
    from the cut on, without an error, while ``imdecode`` refuses it.

    Args:
        path (str | Path): The file.

    Returns:
        tuple[np.ndarray, int]: (H, W, 3) uint8 in BGR order, and the size of the file in bytes.

    Raises:
        BadPhoto: If the file is absent, unreadable, truncated or no image.
    """
    content = read_photo(path)
    return decode_photo(content), len(content)


def read_photo(path):
    """The bytes of a photo's file; raises :class:`BadPhoto` if it is absent or unreadable."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise BadPhoto('the file does not exist') from None
    except OSError as error:
        raise BadPhoto(f'cannot be read: {error.strerror}') from None


def decode_photo(content, flag='color'):
    """(H, W, 3) uint8 in BGR order of a photo's bytes; raises :class:`BadPhoto` if they are no whole image.

    ``flag`` is as of ``mmcv.imfrombytes``: one of OpenCV's ``IMREAD_REDUCED_COLOR_*`` decodes at a smaller size.
    """
    try:
        image = mmcv.imfrombytes(content, flag=flag, backend='cv2') if content else None
    except cv2.error as error:
        raise BadPhoto(f'OpenCV: {error.err}') from None
    if image is None:
        raise BadPhoto(_why_undecodable(content))
    return image


def digest_of(content):
    """The first 64 bits of the BLAKE2b hash of a photo's bytes, as a number; never 0, which means not known."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=32).digest()[:8], 'big') or 1


def read_json(path):
    """Reads a JSON object.

    Args:
        path (str | Path): The file.

    Returns:
        dict: Its content.

    Raises:
        InputError: If the file is missing, is not JSON or holds no object.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f'cannot read {path}: {error.strerror}') from None
    except ValueError as error:
        raise InputError(f'{path} is not JSON: {error}') from None
    if not isinstance(content, dict):
        raise InputError(f'{path} is not a COCO json: it holds no object with "images"')
    return content


def read_images(content, path):
    """The ``images`` entries of a COCO json, checked.

    Args:
        content (dict): What :func:`read_json` returned.
        path (str | Path): Its file, for messages.

    Returns:
        list[dict]: At least one entry, each with an integer ``id`` of at least 0 and a ``file_name``.

    Raises:
        InputError: If there is no entry, or one lacks either.
    """
    images = content.get('images')
    if not isinstance(images, list) or not images:
        raise InputError(f'{path} lists no photo: a COCO json has "images", each with "id" and "file_name"')
    for image in images:
        fits = isinstance(image, dict) and isinstance(image.get('file_name'), str) and type(image.get('id')) is int
        if not fits or not 0 <= image['id'] < 2**63:
            entry = json.dumps(image)[:100]
            raise InputError(f'{path}: an image needs a "file_name" and a whole "id" from 0 up, got {entry}')
    return images


def _list_folder(root):
    try:
        names = [os.path.relpath(path, root).replace(os.sep, '/') for path in _walk(root, ())]
    except OSError as error:
        raise InputError(f'cannot read {error.filename}: {error.strerror}') from None
    if not names:
        raise InputError(f'{root} holds no photo ({", ".join(sorted(SUFFIXES))}), nor do its subfolders')
    return [Photo(image_id_of(name), name, root / name) for name in names]


def _walk(folder, above):
    """Yields the photos below a folder; ``above`` holds the real paths on the way to it, so that links cannot loop."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in os.scandir(folder):
        if entry.name.startswith('.'):
            continue
        if os.path.isdir(entry.path):  # unlike entry.is_dir, False for a link that leads to itself
            yield from _walk(entry.path, (*above, real))
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            yield entry.path


def _list_json(path, image_root):
    images = read_images(read_json(path), path)
    root = _guess_root(path, images) if image_root is None else Path(os.path.abspath(image_root))
    if not root.is_dir():
        raise InputError(f'the image root {root} is not a folder')
    return [Photo(image['id'], image['file_name'], root / image['file_name']) for image in images]


def _list_text(path, image_root):
    root = path.parent if image_root is None else Path(os.path.abspath(image_root))
    if not root.is_dir():
        raise InputError(f'the image root {root} is not a folder')
    try:
        lines = [line.strip() for line in os.fsdecode(path.read_bytes()).removeprefix('\ufeff').splitlines()]
    except OSError as error:
        raise InputError(f'cannot read {path}: {error.strerror}') from None
    names = [_name_below(root, line, path) for line in lines if line and not line.startswith('#')]
    if not names:
        raise InputError(f'{path} lists no photo: write a path a line')
    return [Photo(image_id_of(name), name, root / name) for name in names]


def _name_below(root, line, path):
    """A list's line as the path relative to the root."""
    name = os.path.relpath(root / line, root).replace(os.sep, '/')
    if name.startswith('../'):
        raise InputError(f"{path}: {line!r} is not below {root}: name the photos' folder (--image-root)")
    return name


def _guess_root(path, images):
    folder = path.parent
    candidates = [folder / 'images', folder.parent / 'images', folder.parent / path.stem.split('_')[-1], folder]
    for root in candidates:
        if any((root / image['file_name']).is_file() for image in images):
            return root
    raise InputError(f'no photo of {path} lies in {", ".join(map(str, candidates))}: name their folder (--image-root)')


def _unique(photos, source):
    photos = sorted(photos, key=lambda photo: (photo.image_id, photo.file_name))
    for one, other in zip(photos, photos[1:], strict=False):
        if one.image_id == other.image_id and one.file_name != other.file_name:
            raise InputError(
                f'{source}: {one.file_name!r} and {other.file_name!r} share the id {one.image_id}; '
                'rename one, or give it another id'
            )
    (name, times), *_ = Counter(photo.file_name for photo in photos).most_common(1)
    if times > 1:
        raise InputError(f'{source} lists {name!r} {times} times: keep one of them')
    return photos


def _why_undecodable(content):
    if not content:
        return 'the file is empty'
    try:
        with Image.open(io.BytesIO(content)) as image:
            return f'truncated or damaged {image.format}'
    except Exception:  # whatever a broken file makes Pillow raise, it is no image to Pillow either
        return 'not a whole image of a kind that OpenCV decodes'
