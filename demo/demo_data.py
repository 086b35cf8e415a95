"""The images that the demo trains and evaluates on: synthetic scenes or a folder in COCO layout."""

import random
from dataclasses import dataclass
from pathlib import Path

from synthetic_scenes.scenes import write_scenes

from ccop_mm.utils.coco_json import class_names, read_json, write_subset
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import list_images


@dataclass
class Split:
    """An annotated set of images.

    Attributes:
        annotations (Path): COCO json.
        images (Path): Folder that the json's file names are relative to.
        num_images (int): Number of images in the json.
    """

    annotations: Path
    images: Path
    num_images: int


@dataclass
class DemoData:
    """The data of one demo run.

    Attributes:
        train (Split): Images for proposals, pre-training and fine-tuning.
        val (Split): Images on which kNN recall and AP are measured.
        classes (list[str]): Category names in the order of the json.
        proposals (Path): Proposals file to write.
        description (str): One line on the images, printed with the results.
    """

    train: Split
    val: Split
    classes: list[str]
    proposals: Path
    description: str


def make_scenes(folder: Path, num_train: int, num_val: int) -> DemoData:
    """Generates synthetic scenes in ``folder``."""
    files = write_scenes(folder, num_train, num_val)
    train, val = (Split(files[name], folder / 'images', n) for name, n in (('train', num_train), ('val', num_val)))
    description = f'{num_train} synthetic scenes for training, {num_val} others for evaluation'
    return DemoData(train, val, _class_list(files['train']), folder / 'proposals.npz', description)


def take_images(source: Path, out: Path, num_train: int, num_val: int) -> DemoData:
    """Selects images from a folder in COCO layout.

    The source stays unchanged: only the reduced annotation files are written, below ``out``. If the folder has no
    validation annotations, the training images are also used for evaluation.

    Args:
        source (Path): Folder with ``annotations/*.json`` and the images.
        out (Path): Folder for the reduced annotation files.
        num_train (int): Maximum number of training images.
        num_val (int): Maximum number of validation images.

    Raises:
        InputError: The folder, its annotation files or the instance masks in them are missing.
    """
    if not source.is_dir():
        raise InputError(f'{source} is not a folder; pass a folder with annotations/*.json and the images')
    train, val = _find_annotations(source)
    files = {'train': (train, num_train), 'val': (val or train, num_val if val else num_train)}
    splits = {}
    for name, (annotations, limit) in files.items():
        first = list_images(annotations)[0]
        images = Path(str(first.path).removesuffix(first.file_name))
        splits[name] = _write_subset(annotations, images, out / 'data' / f'instances_{name}.json', limit)
    evaluated = (
        f'{splits["val"].num_images} others for evaluation'
        if val
        else 'also used for evaluation because there are no others, so the results are optimistic'
    )
    description = f'{splits["train"].num_images} images of {source.name} for training, {evaluated}'
    classes = _class_list(splits['train'].annotations)
    return DemoData(splits['train'], splits['val'], classes, out / 'proposals.npz', description)


def _find_annotations(source: Path) -> tuple[Path, Path | None]:
    """Finds the training json and, if there is one, the validation json."""
    files = sorted((source / 'annotations').glob('*.json')) or sorted(source.glob('*.json'))
    instances = [file for file in files if 'instances' in file.name] or files
    if not instances:
        raise InputError(f'{source} contains no annotations/*.json; pass a folder in COCO layout')
    train = next((file for file in instances if 'train' in file.name), instances[0])
    return train, next((file for file in instances if 'val' in file.name and file != train), None)


def _write_subset(annotations: Path, images: Path, out: Path, limit: int) -> Split:
    """Writes the annotations of at most ``limit`` images, sampled with a fixed seed."""
    content = read_json(annotations)
    images_by_id = sorted(content['images'], key=lambda image: image['id'])
    kept = random.Random(0).sample(images_by_id, limit) if len(images_by_id) > limit else images_by_id
    ids, objects = {image['id'] for image in kept}, content.get('annotations', [])
    if not any(annotation['image_id'] in ids and annotation.get('segmentation') for annotation in objects):
        raise InputError(
            f'{annotations} has no instance masks for the selected images; Mask R-CNN needs "segmentation" entries'
        )
    subset = {'images': images_by_id, 'annotations': objects, 'categories': content['categories']}
    num_images, _ = write_subset(subset, out, ids)
    return Split(out, images, num_images)


def _class_list(annotations: Path) -> list[str]:
    return list(class_names(annotations).values())
