"""Reads the COCO json files of a study and writes those of its runs."""

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ccop_mm.utils.coco_json import class_names, read_boxes, read_images, read_json, write_subset
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write
from ccop_mm.utils.text import format_truncated

#: The class of all boxes in a class-agnostic study.
OBJECT = 'object'


@dataclass(frozen=True)
class AnnotationFile:
    """A COCO json and the folder of its images.

    Args:
        path (str): COCO json.
        image_root (str): Folder that its file names are relative to.
    """

    path: str
    image_root: str


@dataclass(frozen=True)
class Annotations:
    """Images and boxes of the classes of a study.

    Args:
        image_root (str): Absolute path of the folder of the images.
        content (dict): COCO json.
    """

    image_root: str
    content: dict[str, Any]

    @property
    def image_ids(self) -> list[int]:
        """Ids of all images, with and without boxes."""
        return [image['id'] for image in self.content['images']]

    @property
    def paths(self) -> set[str]:
        """Paths of all images."""
        return {os.path.normpath(f'{self.image_root}/{image["file_name"]}') for image in self.content['images']}

    @cached_property
    def annotated_ids(self) -> frozenset[int]:
        """Ids of the images with a box that is not a crowd region."""
        return frozenset(entry['image_id'] for entry in self.content['annotations'] if not entry['iscrowd'])

    @property
    def digest(self) -> str:
        """Checksum of the content and of the path of the images."""
        text = json.dumps([self.image_root, self.content], sort_keys=True, default=repr)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def write(self, path: Path, image_ids: Collection[int] | None = None) -> Path:
        """Writes a COCO json with all images, or with some of them, unless it exists."""
        if not path.exists() and image_ids is None:
            with atomic_write(path, 'w') as file:
                json.dump(self.content, file)
        elif not path.exists():
            write_subset(self.content, path, set(image_ids or ()))
        return path


def read_classes(path: str) -> list[str]:
    """Returns the names of the categories of a COCO json in the order of the file.

    Raises:
        InputError: The file is invalid, has no categories, or has a name twice.
    """
    names = list(class_names(path).values())
    if not names or len(set(names)) < len(names):
        raise InputError(f'{path} needs "categories" with different names, got {format_truncated(names) or "none"}')
    return names


def read_annotations(file: AnnotationFile, classes: Sequence[str], class_agnostic: bool = False) -> Annotations:
    """Reads the images of a COCO json, and the boxes of some classes.

    The fields ``area`` and ``iscrowd``, which mmdet and pycocotools require, are added where they are missing.

    Args:
        file (AnnotationFile): COCO json and folder.
        classes (Sequence[str]): Classes to keep.
        class_agnostic (bool): Whether to make all of them one category, :data:`OBJECT`.

    Raises:
        InputError: The file is missing or invalid, the folder is missing, or the file has no box of these classes.
    """
    path, root = file.path, Path(file.image_root).absolute()
    if not root.is_dir():
        raise InputError(f'{root} is not a folder: pass the folder with the images of {path}')
    content = read_json(path)
    images = read_images(content, path)
    read_boxes(content.get('annotations'), path)  # checks all entries but crowd regions
    names = class_names(path)
    chosen = {category_id for category_id, name in names.items() if name in classes}
    annotations = []
    for number, entry in enumerate(content['annotations'], 1):
        if entry.get('category_id') not in names:
            raise InputError(
                f'{path}: annotation {entry.get("id", number)} has category_id {entry.get("category_id")!r}, which is '
                'not among the categories'
            )
        if entry['category_id'] in chosen:
            box = entry['bbox']
            complete = {'id': number, 'area': box[2] * box[3], 'iscrowd': 0, **entry}
            annotations.append({**complete, 'category_id': 1} if class_agnostic else complete)
    if all(entry['iscrowd'] for entry in annotations):
        raise InputError(f'{path} has no box of {format_truncated(list(classes))}: use a file with annotations')
    categories = [category for category in content['categories'] if category['id'] in chosen]
    if class_agnostic:
        categories = [dict(id=1, name=OBJECT)]
    return Annotations(str(root), dict(images=images, annotations=annotations, categories=categories))
