"""Fits the queues of a pre-training config to its data set, before the model is built."""

import logging

from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmselfsup.registry import DATASETS

from ccop_mm.errors import InputError
from ccop_mm.models.queue import suggest_lengths

#: Share of a photo's proposals that both views show: 10.1 of 40 and 12.8 of 50 with MoCo v2's crops at 224 px, on 31
#: COCO photos with selective search (docs/design.md).
SHARE_IN_BOTH_VIEWS = 0.25

#: A fixed length may exceed the suggestion so many times before it is warned of: at twice COCO's share of an epoch,
#: every photo's own keys are among its negatives.
TOLERANCE = 2


def fit_queues(cfg: Config) -> None:
    """Replaces ``queue_len='auto'`` by numbers, in place; warns once of fixed lengths that are too long for the data
    set.

    mmselfsup's ``MoCo`` is warned of that too, and has its own rule checked; its length must be a number. Nothing
    happens for other models and for other data sets than ``ProposalDataset``.

    Args:
        cfg (Config): A training config.

    Raises:
        InputError: The data set cannot be read, or a step of MoCo does not divide its queue.
    """
    model, loader = cfg.get('model') or {}, cfg.get('train_dataloader') or {}
    dataset = loader.get('dataset') or {}
    algorithm, data = (str(part.get('type')).split('.')[-1] for part in (model, dataset))
    if algorithm not in ('CCOP', 'MoCo') or data != 'ProposalDataset':
        return
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmselfsup')):
        photos = DATASETS.build({**dataset, 'pipeline': []})
    photos_a_step = loader.get('batch_size', 1) * get_world_size()
    if len(photos) < photos_a_step:
        raise InputError(
            f'{len(photos)} photos are fewer than the {photos_a_step} of a step: lower train_dataloader.batch_size'
        )
    if algorithm == 'MoCo':
        _check_moco(model.get('queue_len', 65536), len(photos), photos_a_step)
        return
    objects = SHARE_IN_BOTH_VIEWS * photos.mean_proposals()
    suggested = dict(zip(('queue_len', 'object_queue_len'), suggest_lengths(len(photos), objects), strict=True))
    of = f'{len(photos)} photos with about {objects:.1f} objects in both views'
    chosen = {
        'queue_len': model.get('queue_len', 65536),
        'object_queue_len': model.get('object_queue_len') or model.get('queue_len', 65536),
    }
    for name, length in chosen.items():
        if length == 'auto':
            model[name] = suggested[name]
            print_log(f'{name}: {suggested[name]}, for {of}', logger='current')
    too_long = {
        name: length for name, length in chosen.items() if length != 'auto' and length > TOLERANCE * suggested[name]
    }
    if too_long:
        lengths = ', '.join(f'{name}={length}' for name, length in too_long.items())
        advice = ', '.join(f'model.{name}={suggested[name]}' for name in too_long)
        print_log(
            f"{lengths} is long for {of}: the queue holds photos' own keys as negatives; choose {advice}, or "
            "model.queue_len='auto'",
            logger='current',
            level=logging.WARNING,
        )


def _check_moco(length: int | str, photos: int, photos_a_step: int) -> None:
    """What MoCo asserts in its first step, said before it, and what :func:`fit_queues` says to CCOP."""
    suggested = max(1, round(suggest_lengths(photos, 0)[0] / photos_a_step)) * photos_a_step
    if length == 'auto' or length % photos_a_step:
        raise InputError(
            f"MoCo's queue_len must be a multiple of the {photos_a_step} photos of a step, got {length}; choose "
            f'model.queue_len={suggested}'
        )
    if length > TOLERANCE * suggested:
        print_log(
            f"queue_len={length} is long for {photos} photos: the queue holds photos' own keys as negatives; choose "
            f'model.queue_len={suggested}',
            logger='current',
            level=logging.WARNING,
        )
