"""Checks that the images of an annotation file exist, and that the headers of a sample agree with it."""

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image

from ccop_mm.preflight.arguments import type_name
from ccop_mm.preflight.coco_table import CocoTable
from ccop_mm.preflight.findings import Report
from ccop_mm.utils.text import format_truncated

#: Largest fraction of missing images that is tolerated, as for unreadable images in pre-training
#: (:class:`ccop_mm.datasets.ProposalDataset`). A single image is always tolerated.
MAX_MISSING_FRACTION = 0.01
#: Number of images whose headers are read.
SAMPLE_SIZE = 200
#: Number of missing images from which the reason is inferred.
NUM_EXPLAINED = 100
#: Largest number of subfolders that are searched for missing images.
MAX_SUBFOLDERS = 100
#: Number of pixels by which a size in the json may differ: tools that resize images round differently.
SIZE_TOLERANCE = 1

#: EXIF tag, and its values for images that are mirrored or turned by 180 degrees, and for those turned by 90 degrees.
ORIENTATION_TAG = 0x0112
MIRRORED, TURNED = (2, 3, 4), (5, 6, 7, 8)


@dataclass(frozen=True)
class Header:
    """Size of an image file.

    Attributes:
        size (tuple[int, int]): Width and height as stored.
        orientation (int): EXIF orientation, 1 if there is none.
    """

    size: tuple[int, int]
    orientation: int


class FolderListings:
    """Names in folders, each of which is listed once."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def names(self, folder: str) -> frozenset[str]:
        """Returns the names in a folder, none if it does not exist or cannot be read."""
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(folder))
            except OSError:
                self._names[folder] = frozenset()
        return self._names[folder]


def check_images(table: CocoTable, root: str, pipeline: Sequence[Mapping[str, Any]], key: str, report: Report) -> None:
    """Checks that all images exist and that the headers of a sample agree with the sizes in the json.

    Args:
        table (CocoTable): Content of the json.
        root (str): Folder that the file names are relative to.
        pipeline (Sequence[Mapping]): Transforms of the dataset.
        key (str): Config key of the dataset, for messages.
        report (Report): Receives the findings.
    """
    listings = FolderListings()
    missing = find_missing(table.file_names, root, listings)
    fix = explain_missing(missing, root, listings) if missing else None
    fix = fix or f'add them, or correct {key}.data_root and data_prefix.img'
    report_missing(missing, table.num_images, root, table.path, fix, report)
    check_headers(table, root, set(missing), applies_orientation(pipeline), report)


def report_missing(missing: Sequence[str], total: int, root: str, path: str, fix: str, report: Report) -> None:
    """Reports missing images: an error if they are many.

    Args:
        missing (Sequence[str]): File names of the missing images.
        total (int): Number of images.
        root (str): Folder that the file names are relative to.
        path (str): File that lists the images.
        fix (str): What to do.
        report (Report): Receives the finding.
    """
    if missing:
        too_many = len(missing) > max(1, MAX_MISSING_FRACTION * total) or len(missing) == total
        add = report.error if too_many else report.warning
        what = f'{len(missing):,} of the {total:,} images of {path} do not exist: {format_truncated(missing, 3)}'
        add(root, what, fix)


def find_missing(file_names: Sequence[str], root: str, listings: FolderListings) -> list[str]:
    """Returns the file names that do not exist below a folder."""
    missing = []
    folders: dict[str, frozenset[str]] = {}
    for name in file_names:
        parent, _, base = name.rpartition('/')
        if parent not in folders:
            # A name that starts with "/" is absolute.
            folders[parent] = listings.names(os.path.join(root, parent or ('/' if name.startswith('/') else '')) or '.')
        if base not in folders[parent]:
            missing.append(name)
    return missing


def explain_missing(missing: Sequence[str], root: str, listings: FolderListings) -> str | None:
    """Infers from the names of missing images and the content of the image folder why they are not found.

    Returns:
        str | None: What to change, or None if the names look right.
    """
    names = missing[:NUM_EXPLAINED]

    def most(condition: Callable[[str], object]) -> bool:
        return sum(bool(condition(name)) for name in names) > len(names) / 2

    def base(name: str) -> str:
        return PureWindowsPath(name).name  # splits at both kinds of slashes

    found = listings.names(root or '.')
    example = base(names[0])
    relative = f'write paths relative to {root or "the working directory"}, such as {example!r}'
    where = f', where {example!r} exists' if example in found else ''
    if most(lambda name: re.match(r'[A-Za-z]:[\\/]', name) or '\\' in name):
        return f'these are Windows paths: {relative} with forward slashes{where}'
    if most(os.path.isabs):
        return f'these are absolute paths, probably of another machine: {relative}{where}'
    if most(lambda name: '/' in name and base(name) in found):
        return (
            f'the images are in {root} itself: remove the folder from the file names, or set data_prefix.img above it'
        )
    folders = {name.lower(): name for name in found}
    if most(lambda name: name.lower() in folders and name not in found):
        return f'upper and lower case differ: the file is {folders.get(names[0].lower(), names[0])!r}'
    stems = set(map(_stem, found))
    if most(lambda name: _stem(name) in stems):
        wanted = set(map(_stem, names))
        other = next(name for name in sorted(found) if _stem(name) in wanted)
        return f'the images have another suffix: the file is {other!r}'
    folders_of = _find_in_subfolders(set(map(base, names)), root)
    if len(folders_of) > len(names) / 2:
        places = sorted(set(folders_of.values()))
        if len(places) == 1:
            place = places[0]
            return f'the images are in the subfolder {place!r}: set data_prefix.img to it, or add it to the file names'
        listed = format_truncated(list(map(repr, places)), 3)
        example, folder = sorted(folders_of.items())[0]
        return f'the images are in the subfolders {listed}: add these to the file names, such as {folder}/{example}'
    return None


def _find_in_subfolders(names: set[str], root: str) -> dict[str, str]:
    """Searches the subfolders of a folder for files, the nearest first.

    Returns:
        dict[str, str]: Name of each file that was found -> subfolder relative to ``root``.
    """
    found: dict[str, str] = {}
    queue, searched = [''], 0
    while queue and searched < MAX_SUBFOLDERS and len(found) < len(names):
        folder = queue.pop(0)
        searched += 1
        try:
            entries = sorted(os.scandir(os.path.join(root or '.', folder)), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            if entry.name in names:
                found.setdefault(entry.name, folder)
            elif entry.is_dir():
                queue.append(os.path.join(folder, entry.name))
    return {name: folder for name, folder in found.items() if folder}


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def applies_orientation(pipeline: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the transform that loads the images turns them by their EXIF orientation, as mmcv does by default."""
    for transform in pipeline:
        if type_name(transform) in ('LoadImageFromFile', 'LoadReadableImage'):
            color = str(transform.get('color_type', 'color'))
            ignores = color == 'unchanged' or color.endswith('ignore_orientation')
            return not ignores and transform.get('imdecode_backend') != 'turbojpeg'
    return True


def read_header(path: str | Path) -> Header | None:
    """Reads size and EXIF orientation of an image without decoding it; None if the header cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # damaged EXIF data, large images
            with Image.open(path) as image:
                exif = Image.Exif()
                # image.getexif() would decode the whole image if it is a PNG.
                exif.load(image.info.get('exif', b''))
                return Header(image.size, int(exif.get(ORIENTATION_TAG, 1)))
    except Exception:  # Pillow raises various exceptions for invalid files
        return None


def check_headers(table: CocoTable, root: str, missing: set[str], orients: bool, report: Report) -> None:
    """Compares the headers of a sample of the images with the sizes in the json.

    Args:
        table (CocoTable): Content of the json.
        root (str): Folder of the images.
        missing (set[str]): File names that do not exist.
        orients (bool): Whether images are turned by their EXIF orientation when they are loaded.
        report (Report): Receives the findings.
    """
    rows = np.unique(np.linspace(0, table.num_images - 1, min(SAMPLE_SIZE, table.num_images)).round().astype(int))
    sampled: list[str] = []
    groups: dict[str, list[str]] = {kind: [] for kind in ('unreadable', 'turned', 'flipped', 'exchanged', 'different')}
    for row in rows.tolist():
        name, size = table.file_names[row], table.sizes[row]
        if name in missing or not np.isfinite(size).all():
            continue
        sampled.append(name)
        header = read_header(os.path.join(root, name))
        kind = 'unreadable' if header is None else _compare(header, (size[0], size[1]), orients)
        if kind is not None:
            groups[kind].append(name)
    texts = {
        'unreadable': ('cannot be read as an image', 'replace or remove them'),
        'turned': (
            'are turned by their EXIF orientation when they are loaded, while width and height in the json are those '
            'of the stored pixels',
            "if the boxes are too, load them with dict(type='LoadImageFromFile', color_type='color_ignore_orientation')"
            ' in every pipeline; otherwise correct width and height',
        ),
        'exchanged': ('have width and height exchanged in the json', 'exchange them'),
        'different': (
            'have another size than in the json',
            'use the images that were annotated, or scale the boxes and correct width and height',
        ),
    }
    for kind, (problem, fix) in texts.items():
        names = groups[kind]
        if names:
            add = report.error if len(names) > max(1, MAX_MISSING_FRACTION * len(sampled)) else report.warning
            if kind in ('turned', 'exchanged'):  # never by chance
                add = report.error
            what = f'{len(names):,} of {len(sampled):,} sampled images of {table.path} {problem}: '
            add(root, f'{what}{format_truncated(names, 3)}', fix)
    if groups['flipped']:
        names = groups['flipped']
        report.warning(
            root,
            f'{len(names):,} of {len(sampled):,} sampled images of {table.path} are mirrored or turned '
            f'by their EXIF orientation when they are loaded: {format_truncated(names, 3)}',
            "check that the boxes fit the turned images; otherwise set color_type='color_ignore_orientation' in "
            'LoadImageFromFile',
        )


def _compare(header: Header, size: tuple[float, float], orients: bool) -> str | None:
    """Returns how the size in the json differs from that of the loaded image, None if it does not."""
    stored = header.size
    loaded = stored[::-1] if orients and header.orientation in TURNED else stored
    if _equal(size, loaded):
        # The size does not tell whether the boxes are those of the stored pixels.
        undecidable = header.orientation in MIRRORED or (header.orientation in TURNED and loaded == stored)
        return 'flipped' if orients and undecidable else None
    if loaded != stored and _equal(size, stored):
        return 'turned'
    return 'exchanged' if _equal(size, loaded[::-1]) else 'different'


def _equal(first: tuple[float, float], second: tuple[float, float]) -> bool:
    return all(abs(a - b) <= SIZE_TOLERANCE for a, b in zip(first, second, strict=True))
