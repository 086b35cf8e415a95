"""Checks of the classes of a detector: in the config, in the annotation files, and in the heads."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from ccop_mm.preflight.arguments import closest, default_argument, find_class, type_name
from ccop_mm.preflight.coco_table import CocoTable, duplicates
from ccop_mm.preflight.findings import Report, format_value
from ccop_mm.preflight.splits import Split
from ccop_mm.preflight.summary import count
from ccop_mm.utils.text import format_truncated

#: Parts of a detector and of its RoI head that predict one output per class.
HEADS = ('bbox_head', 'mask_head', 'mask_iou_head', 'point_head', 'query_head')


def read_classes(split: Split, report: Report) -> list[str] | None:
    """Returns the classes of a dataset, or None if the config does not define them correctly.

    Args:
        split (Split): Dataset.
        report (Report): Receives the findings.
    """
    where = f'{split.key}.metainfo'
    for name in split.metainfo:
        if name.lower() == 'classes' and name != 'classes':
            report.error(where, f'{name!r} is ignored', "name it 'classes'")
            return None
    classes = split.metainfo.get('classes', getattr(split.dataset_class, 'METAINFO', {}).get('classes'))
    if isinstance(classes, str):
        if not Path(classes).is_file():
            report.error(where, f'classes is the text {classes!r}', f'write a list: classes=({classes!r},)')
            return None
        classes = Path(classes).read_text(encoding='utf-8').splitlines()
    if classes is None:
        return None
    if not all(isinstance(name, str) for name in classes) or not len(classes):
        report.error(where, f'classes is {format_truncated(list(classes)) or "empty"}', 'list the names of the classes')
        return None
    repeated = duplicates(list(classes))
    if repeated:
        report.error(where, f'classes contains {repeated[0]!r} more than once', 'remove all but one')
        return None
    return list(classes)


def check_categories(table: CocoTable, classes: Sequence[str], split: Split, report: Report) -> bool:
    """Checks that all classes are categories of a json and that no category with objects is left out.

    Args:
        table (CocoTable): Content of the json.
        classes (Sequence[str]): Classes of the dataset.
        split (Split): Dataset that reads the json.
        report (Report): Receives the findings.

    Returns:
        bool: Whether all classes are in the json.
    """
    names = table.category_names
    repeated = [name for name in duplicates(names) if name in classes]
    if repeated:
        report.error(
            table.path,
            f'{len(repeated)} names belong to more than one category: {format_truncated(repeated)}',
            'all following classes would get wrong labels: merge the categories of each name',
        )
    where = f'{split.key}.metainfo.classes'
    missing = [name for name in classes if name not in names]
    free = [name for name in names if name not in classes]
    if len(missing) == len(classes):
        listed = f'({format_truncated([repr(name) for name in names], 20)},)' if names else 'no categories'
        report.error(
            where,
            f'none of the {len(classes)} classes ({format_truncated(classes, 3)}) is a category of {table.path}, which '
            f'has {listed}',
            f'set {split.key}.metainfo.classes to the categories of the file' if names else 'add "categories" to it',
        )
    elif missing:
        offered = [f'{name!r}{_nearest(name, free or names)}' for name in missing]
        report.error(
            where,
            f'{len(missing)} of {len(classes)} classes are not among the categories of {table.path}: '
            f'{format_truncated(offered)}',
            'all following classes would get wrong labels: correct the names, or add the categories to the file',
        )
    else:
        counts = dict(zip(names, table.annotations_per_category().tolist(), strict=True))
        unused = [f'{name!r} ({count(counts[name], "object", "objects")})' for name in free if counts[name]]
        if unused:
            report.warning(
                where,
                f'{len(unused)} categories of {table.path} are not in classes: {format_truncated(unused)}',
                'their objects count as background; add them if they should be detected',
            )
    return not missing and not repeated


def _nearest(name: str, candidates: Sequence[str]) -> str:
    """Returns ``' (nearest: ...)'`` with the most similar candidate, or ``''`` if none is similar."""
    lowered = {candidate.lower(): candidate for candidate in candidates}
    match = closest(name.lower().strip(), lowered)
    return f' (nearest: {lowered[match]!r})' if match is not None else ''


def check_splits_agree(classes: Mapping[str, Sequence[str]], report: Report) -> None:
    """Checks that all datasets have the same classes in the same order, which gives them the same labels.

    Args:
        classes (Mapping): Config key of each dataset -> its classes.
        report (Report): Receives the findings.
    """
    keys = list(classes)
    for key in keys[1:]:
        difference = describe_difference(classes[key], classes[keys[0]], keys[0])
        if difference is not None:
            fix = 'use the same classes in the same order for all datasets'
            report.error(f'{key}.metainfo.classes', difference, fix)


def describe_difference(classes: Sequence[str], expected: Sequence[str], owner: str) -> str | None:
    """Describes the first label that stands for another class.

    Args:
        classes (Sequence[str]): Classes to compare.
        expected (Sequence[str]): Classes to compare with.
        owner (str): What has the expected classes.

    Returns:
        str | None: None if all classes and their order are equal.
    """
    for index, pair in enumerate(itertools.zip_longest(classes, expected)):
        if pair[0] != pair[1]:
            found, other = ('missing' if name is None else repr(name) for name in pair)
            return (
                f'the {len(classes)} classes differ from the {len(expected)} of {owner}: label {index} is {found}, '
                f'there {other}'
            )
    return None


def check_heads(cfg: Config, classes: Sequence[str], key: str, report: Report) -> None:
    """Checks that every head predicts as many classes as the dataset has.

    Args:
        cfg (Config): Config of a detector.
        classes (Sequence[str]): Classes of the dataset.
        key (str): Config key of the dataset, for messages.
        report (Report): Receives the findings.
    """
    scope = cfg.get('default_scope')
    wrong: dict[tuple[str, int], list[str]] = {}
    for path, head in iterate_heads(cfg.get('model') or {}, 'model'):
        if 'num_classes' in head and type(head['num_classes']) is not int:
            report.error(f'{path}.num_classes', f'is {format_value(head["num_classes"])}', f'set {len(classes)}')
        number = _number(head, 'num_classes', scope)
        if number is not None and number != len(classes):
            part, _, index = path.rpartition('.')
            wrong.setdefault((part if index.isdigit() else path, number), []).append(f'{path}.num_classes')
        elif number is not None:
            _check_class_weights(path, head, len(classes), report)
    for path, head in _iterate_panoptic_heads(cfg.get('model') or {}, 'model'):
        number, stuff = (_number(head, f'num_{kind}_classes', scope) for kind in ('things', 'stuff'))
        if number is not None and number != len(classes):
            wrong.setdefault((path, number), []).append(f'{path}.num_things_classes')
        elif number is not None and stuff is not None:
            _check_class_weights(path, head, number + stuff, report)
    for (_, number), paths in wrong.items():
        report.error(
            paths[0],
            f'{"the head predicts" if len(paths) == 1 else f"{len(paths)} heads predict"} {number} classes, but {key} '
            f'has {len(classes)} ({format_truncated(classes, 3)})',
            f'set {", ".join(f"{path}={len(classes)}" for path in paths)}',
        )


def _check_class_weights(path: str, head: Mapping[str, Any], num_classes: int, report: Report) -> None:
    """Checks that a list of weights per class has a weight of the background, too, if the loss uses softmax."""
    loss = head.get('loss_cls')
    weights = loss.get('class_weight') if isinstance(loss, Mapping) else None
    if not isinstance(weights, (list, tuple)) or not isinstance(loss, Mapping) or loss.get('use_sigmoid'):
        return
    if type_name(loss) == 'CrossEntropyLoss' and len(weights) != num_classes + 1:
        report.error(
            f'{path}.loss_cls.class_weight',
            f'it has {len(weights)} weights for {num_classes} classes and the background',
            f'list {num_classes + 1} weights, that of the background is the last',
        )


def _iterate_panoptic_heads(model: Mapping[str, Any], key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields config key and config of the heads of MaskFormer and similar detectors."""
    for name in ('panoptic_head', 'panoptic_fusion_head'):
        head = model.get(name)
        if isinstance(head, Mapping):
            yield f'{key}.{name}', head


def iterate_heads(model: Mapping[str, Any], key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields config key and config of each head of a detector that predicts classes of objects.

    A cascade has a list of heads. Class-agnostic mask heads, which have one output, are left out.
    """
    for name in HEADS:
        heads = model.get(name) or []
        many = isinstance(heads, (list, tuple))
        for number, head in enumerate(heads if many else [heads]):
            if isinstance(head, Mapping) and not head.get('class_agnostic'):
                yield f'{key}.{name}.{number}' if many else f'{key}.{name}', head
    for name in ('roi_head', 'detector'):  # semi-supervised methods wrap a detector
        inner = model.get(name) or []
        many = isinstance(inner, (list, tuple))
        for number, part in enumerate(inner if many else [inner]):
            if isinstance(part, Mapping):
                yield from iterate_heads(part, f'{key}.{name}.{number}' if many else f'{key}.{name}')


def _number(head: Mapping[str, Any], name: str, scope: str | None) -> int | None:
    """Returns a number of classes of a head, or the default of its class; None if it has none."""
    if name in head:
        return head[name] if isinstance(head[name], int) else None
    number = default_argument(find_class(MODELS, head.get('type'), scope or 'mmengine'), name)
    return number if isinstance(number, int) else None
