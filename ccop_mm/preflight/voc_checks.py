"""Checks the data of a detector in the format of Pascal VOC: a list of names, and an XML file per image."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ccop_mm.preflight.arguments import closest
from ccop_mm.preflight.coco_table import CocoTable
from ccop_mm.preflight.findings import Report
from ccop_mm.preflight.image_checks import (
    SAMPLE_SIZE,
    FolderListings,
    applies_orientation,
    check_headers,
    explain_missing,
    find_missing,
    report_missing,
)
from ccop_mm.preflight.json_checks import check_json
from ccop_mm.preflight.splits import Split
from ccop_mm.preflight.summary import count
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.text import format_truncated, single_line


def check_voc(split: Split, classes: Sequence[str], report: Report) -> None:
    """Checks that all files of a dataset exist; and names, boxes and sizes in a sample of the XML files.

    mmdet ends with a traceback at a missing XML file, and ignores objects of unknown names without a message.

    Args:
        split (Split): Dataset of type ``XMLDataset`` or ``VOCDataset``.
        classes (Sequence[str]): Classes of the dataset.
        report (Report): Receives the findings.
    """
    path = split.annotation_file
    if not os.path.isfile(path):
        report.error(f'{split.key}.ann_file', f'{path} does not exist', f'set {split.key}.ann_file to a list of names')
        return
    names = Path(path).read_text(encoding='utf-8').splitlines()
    images, annotations = split.voc_folders
    listings = FolderListings()
    absent = find_missing([f'{name}.xml' for name in names], annotations, listings)
    if absent or not names:
        what = f'{len(absent):,} of the {len(names):,} XML files of {path} do not exist: {format_truncated(absent, 3)}'
        report.error(annotations, what, 'add them, or remove these names from the list')
    missing = find_missing([f'{name}.jpg' for name in names], images, listings)
    reason = explain_missing(missing, images, listings) if missing else None
    fix = f'{reason}, while {split.dataset_class.__name__} reads .jpg' if reason else 'add them, or correct the list'
    report_missing(missing, len(names), images, path, fix, report)
    readable = sorted(set(names) - {name.removesuffix('.xml') for name in absent})
    step = max(1, len(readable) // SAMPLE_SIZE)
    sample = {}
    for name in readable[::step][:SAMPLE_SIZE]:
        try:
            sample[name] = _read(Path(annotations, f'{name}.xml'))
        except InputError as error:
            report.error(annotations, str(error), 'correct the file')
            return
    _check_names(sample, classes, split, report)
    sized = {name: content for name, content in sample.items() if content['size'] is not None}
    if sized:
        table = _as_table(sized, path if len(sized) == len(names) else f'{path} (sample of {len(sized)} XML files)')
        check_json(table, report)
        check_headers(table, images, set(missing), applies_orientation(split.pipeline), report)


def _read(path: Path) -> dict[str, Any]:
    """Reads what mmdet reads from an XML file: ``size``, None if missing, and ``objects`` with ``name`` and ``box``.

    Raises:
        InputError: mmdet could not read the file.
    """
    try:
        root = ElementTree.parse(path).getroot()
        size, objects = root.find('size'), []
        for element in root.findall('object'):
            corners = [float(_text(element, f'bndbox/{key}')) for key in ('xmin', 'ymin', 'xmax', 'ymax')]
            objects.append(dict(name=_text(element, 'name'), box=corners))
        sides = None if size is None else [int(_text(size, side)) for side in ('width', 'height')]
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise InputError(f'{path.name} cannot be read: {single_line(error)}') from None
    return dict(size=sides, objects=objects)


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f'<{element.tag}> has no <{path}>')
    return text


def _check_names(sample: Mapping[str, Any], classes: Sequence[str], split: Split, report: Report) -> None:
    """Reports names of objects that are not in ``classes``, as errors if a class is probably misspelt."""
    names = Counter(item['name'] for content in sample.values() for item in content['objects'])
    unknown = {name: number for name, number in names.items() if name not in classes}
    where, files = f'{split.key}.metainfo.classes', f'{len(sample)} XML files of {split.annotation_file}'
    if sample and not names:
        add = report.error if split.part == 'train' else report.warning
        add(split.annotation_file, f'the {len(sample)} XML files contain no objects', 'use files with objects')
        return
    if names and len(unknown) == len(names):
        what = f'none of the objects in {files} has one of the {len(classes)} classes ({format_truncated(classes, 3)})'
        report.error(where, what, f'set it to the names in the files: {format_truncated(list(map(repr, names)), 20)}')
        return
    unseen = {name.lower().strip(): name for name in classes if name not in names}
    others = []
    for name, number in unknown.items():
        nearest = closest(name.lower().strip(), unseen)
        if nearest is None:
            others.append(f'{name!r} ({count(number, "object", "objects")})')
        else:
            what = (
                f'{unseen[nearest]!r} has no objects in {len(sample)} XML files of {split.annotation_file}, which have'
            )
            report.error(where, f'{what} {name!r}', 'correct the name, otherwise these objects are ignored')
    if others:
        what = (
            f'{len(others)} names of objects in {split.annotation_file} are not in classes: {format_truncated(others)}'
        )
        report.warning(where, what, 'their objects count as background; add them if they should be detected')


def _as_table(sample: Mapping[str, Any], path: str) -> CocoTable:
    """Converts XML files to a table; ids are names of files, for messages."""
    names = sorted({item['name'] for content in sample.values() for item in content['objects']})
    annotations = [
        # As in mmdet: VOC counts pixels from 1.
        dict(
            id=f'{name}.xml, object {number}',
            image_id=name,
            category_id=item['name'],
            bbox=[x1 - 1, y1 - 1, x2 - x1, y2 - y1],
            area=1,
            iscrowd=0,
        )
        for name, content in sample.items()
        for number, item in enumerate(content['objects'], 1)
        for x1, y1, x2, y2 in [item['box']]
    ]
    images = [
        dict(id=name, file_name=f'{name}.jpg', width=content['size'][0], height=content['size'][1])
        for name, content in sample.items()
    ]
    categories = [dict(id=name, name=name) for name in names]
    return CocoTable.from_json(dict(images=images, annotations=annotations, categories=categories), path)
