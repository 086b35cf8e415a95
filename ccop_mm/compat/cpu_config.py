"""Adaptation of mmengine configs to machines without a GPU."""

from typing import Any

from ccop_mm.compat import mmengine as mmengine_patches
from ccop_mm.utils.errors import InputError


def prepare_config(cfg: Any) -> Any:
    """Adapts the config of a training or test run to a machine without a GPU, in place.

    SyncBN becomes BN, in mmselfsup's ``NonLinearNeck`` BN1d because its features are vectors, also if it is the neck's
    default: SyncBN fails on the CPU once a process group exists. This is logged. The distributed backend
    becomes gloo, and DistributedDataParallel gets ``device_ids=None``, because mmengine would pass the index of a GPU.
    With a GPU the config is not changed.

    Args:
        cfg (mmengine.Config): Config with all command-line options applied. ``cfg.launcher`` states whether the run is
            distributed.

    Returns:
        mmengine.Config: ``cfg``.
    """
    if not mmengine_patches.runs_on_cpu():
        return cfg
    from mmengine.logging import print_log

    count = _replace_sync_bn(cfg.get('model'))
    if cfg.get('sync_bn'):  # mmengine's option that converts all norm layers of the model
        cfg.sync_bn = None
        count += 1
    if count:
        print_log(f'SyncBN is replaced by BN in {count} places: no usable GPU was found', logger='current')
    cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
    if cfg.get('launcher', 'none') != 'none':
        # mmengine passes the first two arguments only if the config has no model_wrapper_cfg.
        cfg.model_wrapper_cfg = {
            'broadcast_buffers': False,
            'find_unused_parameters': cfg.get('find_unused_parameters', False),
            'type': 'MMDistributedDataParallel',
            **(cfg.get('model_wrapper_cfg') or {}),
            'device_ids': None,
        }
    return cfg


def check_precision(cfg: Any) -> None:
    """Checks that a training with mixed precision has a GPU.

    Args:
        cfg (mmengine.Config): Training config. A test does not use its ``optim_wrapper``.

    Raises:
        InputError: ``optim_wrapper`` requests mixed precision, which mmengine only supports on a GPU.
    """
    requested = str((cfg.get('optim_wrapper') or {}).get('type')).endswith('AmpOptimWrapper')
    if requested and mmengine_patches.runs_on_cpu():
        raise InputError(
            'AmpOptimWrapper needs a GPU, and no usable GPU was found: omit --amp, set optim_wrapper.type=OptimWrapper '
            'if the config requests it, or run on a machine with a GPU'
        )


def _replace_sync_bn(node: Any, batch_norm: str = 'BN') -> int:
    """Replaces SyncBN in a part of a config, in place; returns the number of replacements."""
    if isinstance(node, (list, tuple)):
        return sum(_replace_sync_bn(part, batch_norm) for part in node)
    if not isinstance(node, dict):
        return 0
    scope, dot, name = str(node.get('type')).rpartition('.')
    if name == 'NonLinearNeck':
        batch_norm = 'BN1d'
        node.setdefault('norm_cfg', dict(type='SyncBN'))
    count = sum(_replace_sync_bn(part, batch_norm) for part in node.values())
    if name in ('SyncBN', 'MMSyncBN'):
        node['type'] = f'{scope}{dot}{batch_norm}'
        # Arguments of torch's and mmcv's SyncBatchNorm that BatchNorm does not accept.
        for argument in ('process_group', 'group', 'stats_mode'):
            node.pop(argument, None)
        count += 1
    return count
