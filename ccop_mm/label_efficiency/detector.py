"""Reads the config of a detector as the runs of a study need it: data, optimizer, and a model without weights."""

import copy
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine import registry as registries
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from ccop_mm.label_efficiency.annotations import OBJECT, AnnotationFile, Annotations, read_annotations, read_classes
from ccop_mm.preflight import Report
from ccop_mm.preflight.arguments import accepted_arguments, default_argument, find_class
from ccop_mm.preflight.class_checks import iterate_heads
from ccop_mm.preflight.class_checks import read_classes as read_configured_classes
from ccop_mm.preflight.config import check_options
from ccop_mm.preflight.splits import Split, find_splits
from ccop_mm.pretrain.detector_file import custom_imports, load_config, locate_config
from ccop_mm.utils.errors import InputError

#: Scope of configs that do not set one.
SCOPE = 'mmdet'
#: Arguments that freeze layers, with the value for which all are trained.
UNFROZEN = {'frozen_stages': -1, 'norm_eval': False}
#: Arguments of a dataset that stay if its annotations are replaced by a COCO json.
KEPT_ARGUMENTS = ('filter_cfg', 'pipeline', 'test_mode', 'backend_args')


@dataclass(frozen=True)
class StudyDetector:
    """A detector and its data.

    Args:
        reference (str): Config of the detector.
        settings (dict): The whole config: all layers are trained, the number of classes is that of the data. The model
            loads the weights that the config names.
        random_model (dict): The model without any checkpoint.
        checkpoints (tuple[str, ...]): Weights that the config loads.
        train (Annotations): Training data.
        val (Annotations): Data that AP is measured on.
        rate (float): Learning rate of the config for the batch size.
        batch_size (int): Images per iteration.
    """

    reference: str
    settings: dict[str, Any]
    random_model: dict[str, Any]
    checkpoints: tuple[str, ...]
    train: Annotations
    val: Annotations
    rate: float
    batch_size: int


def read_study_detector(
    config: str | Path,
    files: tuple[AnnotationFile, AnnotationFile] | None = None,
    class_agnostic: bool = False,
    options: Mapping[str, Any] | None = None,
) -> StudyDetector:
    """Reads the config of a detector and its data.

    Args:
        config (str | Path): Config file, or ``mmdet::FOLDER/NAME.py``.
        files (tuple, optional): Training and validation data that replace those of the config.
        class_agnostic (bool): Whether all boxes become one class.
        options (Mapping, optional): Settings of the config to override, by dotted key.

    Raises:
        InputError: The config, its data, or an option is invalid or not supported.
    """
    path, reference = locate_config(config)
    cfg = load_config(path)
    report = Report()
    check_options(cfg, dict(options or {}), report)
    for finding in report.warnings:
        print_log(str(finding), 'current', logging.WARNING)
    report.raise_errors()
    cfg.merge_from_dict(dict(options or {}))
    cfg = Config(cfg.to_dict())
    if not isinstance(cfg.get('model'), Mapping):
        raise InputError(f'{config} has no model: pass the config of a detector')
    cfg.setdefault('default_scope', SCOPE)
    if cfg.get('val_dataloader') is None:
        cfg.val_dataloader = copy.deepcopy(cfg.get('test_dataloader'))
    for part in ('train', 'val'):
        if not isinstance(cfg.get(f'{part}_dataloader'), Mapping) or not cfg[f'{part}_dataloader'].get('dataset'):
            raise InputError(f'{config} has no {part}_dataloader: pass the config of a detector with its data')
    if files is not None:
        for part, file in zip(('train', 'val'), files, strict=True):
            _use_file(cfg, part, file, read_classes(files[0].path))
    splits = [_find_split(cfg, part, config) for part in ('train', 'val')]
    classes = _read_configured_classes(splits)
    train, val = (read_annotations(_annotation_file(split), classes, class_agnostic) for split in splits)
    if class_agnostic:
        classes = [OBJECT]
    for split, annotations in zip(splits, (train, val), strict=True):
        split.config.metainfo = dict(classes=tuple(classes))
        split.config.data_prefix['img'] = f'{annotations.image_root}/'
    settings = cfg.to_dict()
    model, scope = settings['model'], cfg.default_scope
    if class_agnostic or files is not None:
        set_num_classes(model, len(classes), scope, config)
    unfreeze(model, scope)
    imports = custom_imports(cfg)
    settings['custom_imports'] = dict(
        imports=list(dict.fromkeys(['ccop_mm', *imports])),
        allow_failed_imports=(cfg.get('custom_imports') or {}).get('allow_failed_imports', False),
    )
    random_model, checkpoints = strip_checkpoints(model)
    if cfg.get('load_from'):
        checkpoints.append(cfg.load_from)
    batch_size = cfg.train_dataloader.get('batch_size', 1)
    return StudyDetector(
        reference, settings, random_model, tuple(checkpoints), train, val, _base_rate(cfg, config), batch_size
    )


def _use_file(cfg: Config, part: str, file: AnnotationFile, classes: Sequence[str]) -> None:
    """Replaces the dataset of a data loader by a COCO json; several datasets become one."""

    def replace(dataset: ConfigDict) -> dict[str, Any]:
        kind = find_class(registries.DATASETS, dataset.get('type'), cfg.default_scope)
        reads_coco = inspect.isclass(kind) and Split(part, part, dataset, kind).reads_coco_json
        kept = {key: dataset[key] for key in KEPT_ARGUMENTS if dataset.get(key) is not None}
        root = str(Path(file.image_root).absolute())
        return dict(
            kept,
            type=dataset['type'] if reads_coco else 'mmdet.CocoDataset',
            ann_file=str(Path(file.path).absolute()),
            data_prefix=dict(img=f'{root}/'),
            metainfo=dict(classes=tuple(classes)),
        )

    loader = cfg[f'{part}_dataloader']
    loader['dataset'] = _replace_innermost(loader['dataset'], replace)


def _replace_innermost(dataset: Any, replace: Callable[[Any], dict[str, Any]]) -> Any:
    """Replaces the dataset inside wrappers. A concatenation becomes its first dataset."""
    if isinstance(dataset.get('dataset'), Mapping):
        return ConfigDict({**dataset, 'dataset': _replace_innermost(dataset['dataset'], replace)})
    if dataset.get('datasets'):
        return _replace_innermost(dataset['datasets'][0], replace)
    return ConfigDict(replace(dataset))


def _find_split(cfg: Config, part: str, config: str | Path) -> Split:
    """Returns the only dataset of a data loader, which must read a local COCO json."""
    splits = find_splits(cfg, (part,))
    replace = 'pass --annotations, --images, --val-annotations and --val-images to use a COCO json'
    if len(splits) != 1:
        found = 'no detection dataset' if not splits else f'{len(splits)} datasets'
        raise InputError(f'{part}_dataloader of {config} has {found} where one is required: {replace}')
    (split,) = splits
    if not split.reads_coco_json or split.is_remote:
        reason = 'is in a remote storage' if split.reads_coco_json else 'does not read a COCO json'
        raise InputError(f'{split.key} of {config} ({split.config.get("type")}) {reason}: {replace}')
    if split.config.get('indices') is not None:
        raise InputError(f'{split.key}.indices of {config} selects images: remove it, and use --num-images')
    if not split.annotation_file or split.image_root is None:
        raise InputError(f"{split.key} of {config} needs ann_file and data_prefix=dict(img='FOLDER/'): set them")
    if not Path(split.annotation_file).is_file():
        raise InputError(f'{split.annotation_file}, the ann_file of {split.key}, does not exist: {replace}')
    return split


def _annotation_file(split: Split) -> AnnotationFile:
    return AnnotationFile(split.annotation_file, split.image_root or '')


def _read_configured_classes(splits: Sequence[Split]) -> list[str]:
    """Returns the classes of the training data, which must be those of the validation data."""
    report = Report()
    classes = [read_configured_classes(split, report) for split in splits]
    report.raise_errors()
    if classes[0] is None:
        raise InputError(f'{splits[0].key}.metainfo has no classes: set them')
    if classes[0] != classes[1]:
        raise InputError(f'the classes of {splits[0].key} and {splits[1].key} differ: use the same, in the same order')
    return classes[0]


def set_num_classes(model: dict[str, Any], number: int, scope: str, config: str | Path) -> None:
    """Sets ``num_classes`` of every head that predicts classes, in place.

    Raises:
        InputError: There is no such head.
    """
    heads = [head for _, head in iterate_heads(model, 'model') if _has_classes(head, scope)]
    if not heads:
        raise InputError(f'no head of {config} has num_classes: this detector is not supported with other classes')
    for head in heads:
        head['num_classes'] = number  # type: ignore[index]


def _has_classes(head: Mapping[str, Any], scope: str) -> bool:
    kind = find_class(registries.MODELS, head.get('type'), scope)
    return 'num_classes' in head or isinstance(default_argument(kind, 'num_classes'), int)


def unfreeze(model: dict[str, Any], scope: str) -> None:
    """Makes all layers of backbone and neck trainable, in place.

    Freezing the first layers suits weights that were trained on many labeled images. Random layers must not be frozen,
    and all weights of a study are treated equally.
    """
    necks = model.get('neck') or []
    for module in (model.get('backbone') or {}, *(necks if isinstance(necks, (list, tuple)) else [necks])):
        _unfreeze_module(module, scope)


def _unfreeze_module(value: Any, scope: str) -> None:
    if isinstance(value, (list, tuple)):
        for item in value:
            _unfreeze_module(item, scope)
    if not isinstance(value, dict):
        return
    for item in value.values():
        _unfreeze_module(item, scope)
    if value.get('requires_grad') is False:  # a norm layer
        value['requires_grad'] = True
    kind = find_class(registries.MODELS, value.get('type'), scope) if 'type' in value else None
    accepted = (accepted_arguments(kind) or frozenset()) if inspect.isclass(kind) else frozenset()
    for name, unfrozen in UNFROZEN.items():
        default = default_argument(kind, name)
        # 0 freezes nothing in classes that have it as default (mmpretrain's ConvNeXt), and the stem in others.
        target = 0 if name == 'frozen_stages' and default == 0 else unfrozen
        if name in accepted and value.get(name, default) != target:
            value[name] = target


def strip_checkpoints(model: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Removes everything that loads pre-trained weights from the config of a model.

    Args:
        model (Mapping): Config of a model; not modified.

    Returns:
        tuple[dict, list[str]]: The model, whose classes then initialize randomly, and the removed checkpoints.
    """
    removed: list[str] = []
    return _strip(model, removed), removed


def _strip(value: Any, removed: list[str]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_strip(item, removed) for item in value)
    if not isinstance(value, Mapping):
        return value
    node = {key: _strip(item, removed) for key, item in value.items() if key not in ('init_cfg', 'pretrained')}
    pretrained = value.get('pretrained')
    if pretrained:
        removed.append(str(pretrained))
    elif 'pretrained' in value:
        node['pretrained'] = pretrained
    listed = value.get('init_cfg')
    if not listed and 'init_cfg' in value:
        node['init_cfg'] = listed
    if listed:
        many = isinstance(listed, (list, tuple))
        initializers = list(listed) if many else [listed]
        random = [item for item in initializers if not (isinstance(item, Mapping) and item.get('checkpoint'))]
        removed += [item['checkpoint'] for item in initializers if item not in random]
        if random:
            node['init_cfg'] = copy.deepcopy(random if many else random[0])
    return node


def _base_rate(cfg: Config, config: str | Path) -> float:
    """Returns the learning rate of a config, scaled to its batch size if it states the one that the rate is for."""
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    rate = optimizer.get('lr') if isinstance(optimizer, Mapping) else None
    if not isinstance(rate, (int, float)) or isinstance(rate, bool) or not rate > 0:
        raise InputError(f'{config} needs a positive optim_wrapper.optimizer.lr, got {rate!r}: set it')
    base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    if not base:
        return float(rate)
    images = cfg.train_dataloader.get('batch_size', 1) * cfg.optim_wrapper.get('accumulative_counts', 1)
    return float(f'{float(rate) * images / base:.4g}')
