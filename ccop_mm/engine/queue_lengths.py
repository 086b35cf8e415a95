"""Adapts the queue lengths of a pre-training config, or of a model that is built already, to the dataset."""

import logging

from mmengine.config import Config
from mmengine.dist import broadcast
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmselfsup.registry import DATASETS

from ccop_mm.datasets.proposal_dataset import ProposalDataset
from ccop_mm.models.ccop import CCOP
from ccop_mm.models.queue import suggest_lengths, suggest_moco_length
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.run_config import expected_world_size

#: Fraction of an image's proposals that are visible in both views: 10.1 of 40 and 12.8 of 50 with MoCo v2's crops at
#: 224 px, on 31 COCO images with selective search (docs/design.md).
FRACTION_IN_BOTH_VIEWS = 0.25

#: Algorithms of mmselfsup whose queue length must be a multiple of the batch size.
WITH_MULTIPLES = ('MoCo', 'DenseCL')

#: A fixed length is accepted up to this multiple of the suggested one. At twice the fraction of an epoch that the
#: paper's queue stores of COCO, the negatives of every image include its own keys.
TOLERANCE = 2


def fit_queues(cfg: Config) -> None:
    """Resolves ``queue_len='auto'`` to the lengths suggested for the dataset; warns if fixed lengths are too long.

    mmselfsup's ``MoCo`` and ``DenseCL`` get the same warning, and their own constraint is checked: their length must be
    a multiple of the batch size, so ``'auto'`` is an error. Other models, and datasets other than ``ProposalDataset``,
    are not affected.

    Args:
        cfg (Config): Training config, modified in place.

    Raises:
        InputError: The dataset cannot be read or is smaller than a batch, or the queue length of MoCo or DenseCL is not
            a multiple of the batch size.
    """
    model, loader = cfg.get('model') or {}, cfg.get('train_dataloader') or {}
    dataset_cfg = loader.get('dataset') or {}
    algorithm, dataset_type = (str(part.get('type')).split('.')[-1] for part in (model, dataset_cfg))
    if algorithm not in ('CCOP', *WITH_MULTIPLES) or dataset_type != 'ProposalDataset':
        return
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmselfsup')):
        dataset = DATASETS.build({**dataset_cfg, 'pipeline': []})
    batch_size = loader.get('batch_size', 1) * (expected_world_size(cfg) or 1)
    if len(dataset) < batch_size:
        raise InputError(
            f'the dataset has {len(dataset)} images, fewer than the batch size of {batch_size}; lower '
            'train_dataloader.batch_size'
        )
    if algorithm in WITH_MULTIPLES:
        _check_multiple(algorithm, model.get('queue_len', 65536), len(dataset), batch_size)
        return
    suggested, content = _suggest(dataset)
    chosen = {
        'queue_len': model.get('queue_len', 65536),
        'object_queue_len': model.get('object_queue_len') or model.get('queue_len', 65536),
    }
    for name, length in chosen.items():
        if length == 'auto':
            model[name] = suggested[name]
            _report(name, suggested[name], content)
    too_long = {
        name: length for name, length in chosen.items() if length != 'auto' and length > TOLERANCE * suggested[name]
    }
    if too_long:
        lengths = ', '.join(f'{name}={length}' for name, length in too_long.items())
        advice = ', '.join(f'model.{name}={suggested[name]}' for name in too_long)
        _warn_too_long(lengths, content, f"{advice}, or model.queue_len='auto'")


def size_queues(model: CCOP, dataset: ProposalDataset) -> None:
    """Sets the queues of a model that was built with the length ``'auto'`` to the lengths suggested for the dataset.

    Args:
        model (CCOP): Model, the same on all ranks; its queues are equal on all ranks afterwards.
        dataset (ProposalDataset): Training data.

    Raises:
        InputError: The dataset has no proposals from which the length could be derived.
    """
    unsized = model.unsized_queues()
    if not unsized:
        return
    if not isinstance(dataset, ProposalDataset):
        raise InputError(
            f"queue_len='auto' requires the dataset ProposalDataset, got {type(dataset).__name__}; set a number"
        )
    suggested, content = _suggest(dataset)
    for name, queue in unsized.items():
        queue.resize(suggested[name])
        broadcast(queue.keys)
        _report(name, suggested[name], content)


def _suggest(dataset: ProposalDataset) -> tuple[dict[str, int], str]:
    """Returns the suggested lengths by the name of their argument, and what they are suggested for."""
    objects = FRACTION_IN_BOTH_VIEWS * dataset.mean_proposals()
    suggested = dict(zip(('queue_len', 'object_queue_len'), suggest_lengths(len(dataset), objects), strict=True))
    return suggested, f'{len(dataset)} images with about {objects:.1f} objects in both views'


def _report(name: str, length: int, content: str) -> None:
    print_log(f'{name} set to {length} for {content}', logger='current')


def _check_multiple(algorithm: str, length: int | str, num_images: int, batch_size: int) -> None:
    """Checks what mmselfsup's MoCo or DenseCL would assert in its first iteration; warns like :func:`fit_queues`."""
    suggested = suggest_moco_length(num_images, batch_size)
    if isinstance(length, str) or length % batch_size:
        raise InputError(
            f'queue_len of {algorithm} must be a multiple of the batch size {batch_size}, got {length}; set '
            f'model.queue_len={suggested}'
        )
    if length > TOLERANCE * suggested:
        _warn_too_long(f'queue_len={length}', f'{num_images} images', f'model.queue_len={suggested}')


def _warn_too_long(lengths: str, content: str, advice: str) -> None:
    print_log(
        f"{lengths} is too long for {content}: the negatives include the image's own keys; set {advice}",
        logger='current',
        level=logging.WARNING,
    )
