"""Checks of the metrics that hooks monitor: mmengine looks them up after the first validation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine import registry as registries
from mmengine.config import Config

from ccop_mm.preflight.arguments import closest, default_argument, find_class, type_name
from ccop_mm.preflight.findings import Report
from ccop_mm.preflight.splits import find_splits
from ccop_mm.utils.text import format_truncated

#: Evaluators whose metrics are named like those of mmdet's ``CocoMetric``.
COCO_METRICS = ('CocoMetric', 'CocoKeypointMetric')
#: Values of ``metric_items`` of mmdet's ``CocoMetric``; the first are the default.
COCO_ITEMS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
RECALL_ITEMS = ('AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000')
KEYPOINT_ITEMS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_m', 'mAP_l', 'AR', 'AR_50', 'AR_75', 'AR_m', 'AR_l')
#: Hooks that monitor a metric, and the argument that names it.
MONITORS = {'CheckpointHook': 'save_best', 'SafeCheckpointHook': 'save_best', 'EarlyStoppingHook': 'monitor'}


def check_metric_names(cfg: Config, report: Report) -> None:
    """Reports names of metrics that the evaluator does not compute, with which a run ends after its first validation.

    Args:
        cfg (Config): Training config.
        report (Report): Receives the findings. Evaluators other than COCO's and VOC's are not checked.
    """
    evaluators = cfg.get('val_evaluator') or []
    computed: set[str] = set()
    listed = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    for number, evaluator in enumerate(listed):
        key = f'val_evaluator.{number}' if listed is evaluators else 'val_evaluator'
        for item in (evaluator.get('metric_items') or ()) if type_name(evaluator) in COCO_METRICS else ():
            if item not in (*COCO_ITEMS, *RECALL_ITEMS):
                match = closest(str(item), (*COCO_ITEMS, *RECALL_ITEMS))
                fix = f'did you mean {match!r}' if match else f'use any of {", ".join((*COCO_ITEMS, *RECALL_ITEMS))}'
                report.error(f'{key}.metric_items', f'{item!r} is unknown', fix)
    for evaluator in listed:
        names = _metric_names(evaluator, cfg)
        if names is None:
            return
        computed |= names
    for path, name in _monitored(cfg):
        if cfg.get('val_dataloader') is None:
            report.warning(path, f'{name!r} has no effect without a validation', 'set val_dataloader, or remove it')
        elif computed and name not in computed:
            match = closest(name, computed)
            fix = f'did you mean {match!r}' if match else f'use one of {format_truncated(sorted(computed), 6)}'
            report.error(path, f'val_evaluator does not compute {name!r}', fix)


def _monitored(cfg: Config) -> Iterator[tuple[str, str]]:
    """Yields path and value of each argument that names a metric."""
    default_hooks = cfg.get('default_hooks') or {}
    hooks = [(f'default_hooks.{key}', hook) for key, hook in default_hooks.items()]
    hooks += [(f'custom_hooks.{number}', hook) for number, hook in enumerate(cfg.get('custom_hooks') or [])]
    for path, hook in hooks:
        argument = MONITORS.get(type_name(hook))
        value = hook.get(argument) if argument else None
        for name in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(name, str) and name != 'auto':
                yield f'{path}.{argument}', name


def _metric_names(evaluator: Any, cfg: Config) -> set[str] | None:
    """Returns the names of the metrics that an evaluator computes, None if they are not known."""
    kind = type_name(evaluator)
    if kind not in (*COCO_METRICS, 'VOCMetric') or not isinstance(evaluator, Mapping):
        return None
    scope = cfg.get('default_scope') or 'mmengine'
    target = find_class(registries.METRICS, evaluator.get('type'), scope)
    prefix = evaluator.get('prefix') or getattr(target, 'default_prefix', None)
    metrics = evaluator.get('metric', default_argument(target, 'metric'))
    names = set()
    for metric in [metrics] if isinstance(metrics, str) else metrics or ():
        computed = _voc_names(metric, evaluator) if kind == 'VOCMetric' else _coco_names(metric, evaluator)
        if computed is None:
            return None
        names |= computed
        if evaluator.get('classwise') and kind != 'VOCMetric':
            suffix = 'keypoints_precision' if metric == 'keypoints' else 'precision'
            names |= {f'{name}_{suffix}' for name in _class_names(cfg)}
    return {f'{prefix}/{name}' if prefix else name for name in names}


def _coco_names(metric: str, evaluator: Mapping[str, Any]) -> set[str] | None:
    items = evaluator.get('metric_items')
    if metric == 'keypoints':
        return {f'keypoints_{item}' for item in KEYPOINT_ITEMS}
    if metric == 'proposal':
        return set(items or RECALL_ITEMS)
    if metric == 'proposal_fast':
        return {f'AR@{number}' for number in evaluator.get('proposal_nums', (100, 300, 1000))}
    return {f'{metric}_{item}' for item in items or COCO_ITEMS}


def _voc_names(metric: str, evaluator: Mapping[str, Any]) -> set[str] | None:
    thresholds = evaluator.get('iou_thrs', 0.5)
    thresholds = thresholds if isinstance(thresholds, (list, tuple)) else [thresholds]
    if metric != 'mAP' or not all(isinstance(threshold, (int, float)) for threshold in thresholds):
        return None
    return {'mAP', *(f'AP{int(threshold * 100):02d}' for threshold in thresholds)}


def _class_names(cfg: Config) -> Sequence[str]:
    """Returns the classes of the validation dataset."""
    for split in find_splits(cfg, ['val']):
        classes = split.metainfo.get('classes', getattr(split.dataset_class, 'METAINFO', {}).get('classes'))
        if isinstance(classes, (list, tuple)):
            return [str(name) for name in classes]
    return []
