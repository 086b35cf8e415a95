"""Mends of the host libraries; the only file that knows their versions' quirks.

:func:`mend` runs when ``ccop_mm`` is imported. Each mend looks for its fault and leaves a host without it alone; so it
may run twice, and before or after the hosts were imported. :func:`prepare_config` is for the command lines.
"""

import atexit
import contextlib
import functools
import gc
import hashlib
import importlib
import json
import pickle
import sys
from pathlib import Path
from urllib.parse import urlparse

import torch

from .errors import InputError


def mend():
    """Applies every mend; see their docstrings.

    Raises:
        Exception: Whatever a host raises that cannot be imported, for a reason that has no mend.
    """
    define_torchvision_schemas()
    import_frozen_packages()
    drop_missing_locations()
    allow_checkpoint_types()
    remove_unsafe_fallback()
    guard_downloads()
    ignore_config_text_on_resume()
    initialize_on_cpu()
    exchange_names_as_json()


@contextlib.contextmanager
def _swapped(owner, name, value):
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


# torch forgets what a Library declared once the object is gone.
_DECLARED = []


def define_torchvision_schemas():
    """Lets torchvision be imported where its compiled ops cannot be loaded.

    Fault: the wheel's ops need the torch build that it was made with. Beside another one (a CPU build of torch beside
    torchvision's default wheel) ``import torchvision`` dies on ``operator torchvision::nms does not exist``, for it
    describes two ops that nobody has declared. Seen in torchvision 0.28; mmselfsup needs only its transforms, which are
    Python.
    """
    try:
        importlib.import_module('torchvision')
    except RuntimeError as error:
        if 'operator torchvision::' not in str(error):
            raise
        library = torch.library.Library('torchvision', 'FRAGMENT')
        for name in ('nms', 'qnms'):
            library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        _DECLARED.append(library)
        # What the failed import has left behind is not attached to the package that comes now.
        for name in [name for name in sys.modules if name.startswith('torchvision.')]:
            del sys.modules[name]
        importlib.import_module('torchvision')


def import_frozen_packages():
    """Imports mmcls and mmselfsup beside an mmcv that is newer than they allow.

    Fault: ``mmcls`` 1.0.0rc6 and ``mmselfsup`` 1.0.0, the last releases, assert ``mmcv < 2.1.0``; later ones serve too.
    For the length of these two imports mmcv says that it is 2.0.1, the last release that they accept.
    """
    import mmcv

    for package in ('mmcls', 'mmselfsup'):
        if package not in sys.modules:
            with _swapped(mmcv, '__version__', '2.0.1'):
                importlib.import_module(package)
            _attach_submodules(package)


def _attach_submodules(package):
    """Sets as attributes the submodules that an earlier, failed import left in ``sys.modules``, as an import does."""
    for name, module in list(sys.modules.items()):
        parent, _, child = name.rpartition('.')
        if name.startswith(f'{package}.') and parent in sys.modules and not hasattr(sys.modules[parent], child):
            setattr(sys.modules[parent], child, module)


def drop_missing_locations():
    """Takes out of mmselfsup's registries the locations that do not exist.

    Fault: ``mmselfsup.registry`` 1.0.0 names modules that the package does not have (``mmselfsup.engine.runner``).
    mmengine imports every location at the first lookup, so that no Runner can be built in mmselfsup's scope.
    """
    import mmselfsup.registry
    from mmengine.registry import Registry

    root = Path(mmselfsup.__file__).parent.parent
    for registry in vars(mmselfsup.registry).values():
        if isinstance(registry, Registry) and registry.scope == 'mmselfsup':
            # Looked up as files: importlib.util.find_spec would import the parents, all of mmselfsup.
            paths = {name: root.joinpath(*name.split('.')) for name in registry._locations}
            registry._locations = [
                name for name, path in paths.items() if path.is_dir() or path.with_suffix('.py').is_file()
            ]


def allow_checkpoint_types():
    """Lets ``torch.load(weights_only=True)`` read the checkpoints that mmengine writes.

    Fault: a checkpoint holds the logged history (``HistoryBuffer``: arrays, and its statistics methods by ``getattr``),
    which torch >= 2.6 refuses. mmengine 0.10.7 then cannot resume from its own file; onedl-mmengine 0.10.12 allow-lists
    the true ``getattr``. Allowed here: HistoryBuffer, numpy arrays and scalars of numbers (under the names of numpy 1
    and of numpy 2, for files travel between them), and :func:`_statistics_method` in the place of ``getattr``.
    """
    import numpy as np
    from mmengine.logging import HistoryBuffer

    codes = np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?'
    allowed = [HistoryBuffer, np.ndarray, np.dtype, *{type(np.dtype(code)) for code in codes}]
    for value in (np.empty(0), np.float64(0)):
        rebuild = value.__reduce__()[0]  # numpy's _reconstruct and scalar, wherever this release keeps them
        allowed += [(rebuild, f'numpy.{core}.multiarray.{rebuild.__name__}') for core in ('core', '_core')]
    allowed.append((_statistics_method, 'builtins.getattr'))
    torch.serialization.add_safe_globals(allowed)


def _statistics_method(owner, name):
    """``getattr`` as a checkpoint may use it: for the statistics methods of ``HistoryBuffer`` and nothing else."""
    from mmengine.logging import HistoryBuffer

    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'a checkpoint may not ask for attribute {name!r} of {owner!r}')


def remove_unsafe_fallback():
    """Makes onedl-mmengine's loader refuse what cannot be loaded safely.

    Fault: ``_safe_torch_load`` of onedl-mmengine (seen in 0.10.12) answers a refusal by loading again with
    ``weights_only=False``, which runs any code that the file carries. mmengine 0.10.7 has no such function and leaves
    the choice to torch, which refuses.
    """
    from mmengine.runner import checkpoint

    if hasattr(checkpoint, '_safe_torch_load'):
        checkpoint._safe_torch_load = _load_weights_only


def _load_weights_only(file, map_location=None, weights_only=True):
    """``torch.load`` with its guard on, whatever ``weights_only`` says."""
    # Once more: torch.serialization.safe_globals() forbids on leaving what had been allowed before it as well.
    allow_checkpoint_types()
    return torch.load(file, map_location=map_location, weights_only=True)


def guard_downloads():
    """Makes mmengine's loader of addresses refuse what cannot be loaded safely.

    Fault: ``load_from_http`` (mmengine 0.10.7, onedl-mmengine 0.10.12), which ``https://``, ``torchvision://``,
    ``open-mmlab://`` and other prefixes end in, calls torch's ``load_url`` with ``weights_only`` left off, so that a
    downloaded file runs what code it carries. torch also keeps a download by the last part of its address, and every
    run has an ``epoch_800.pth``: the file of one address would be taken for that of another. Here the whole address is
    part of the name.
    """
    from mmengine.runner import checkpoint

    checkpoint.load_url = load_address


def load_address(address, model_dir=None, map_location=None, progress=True):
    """Downloads a checkpoint, once for each address, and loads its tensors with torch's guard on."""
    digest = hashlib.blake2b(address.encode(), digest_size=8).hexdigest()
    name = f'{digest}_{Path(urlparse(address).path).name}'
    where = dict(model_dir=model_dir, map_location=map_location, progress=progress)
    return torch.hub.load_state_dict_from_url(address, file_name=name, weights_only=True, **where)


def ignore_config_text_on_resume():
    """Lets a run resume from a checkpoint without executing the text that the checkpoint carries.

    Fault: ``Runner.resume`` (mmengine 0.10.7, onedl-mmengine 0.10.12) parses ``meta['config']``, the text of a Python
    file, by running it; so a checkpoint executes whatever its maker wrote there, although its tensors were loaded with
    care. mmengine itself writes no such entry (its key is ``cfg``), and reads of it ``gpu_ids`` alone. It is dropped
    before ``resume`` sees it.
    """
    from mmengine.runner import Runner

    resume = Runner.resume
    if hasattr(resume, '__wrapped__'):
        return

    @functools.wraps(resume)
    def wrapped(self, *args, **kwargs):
        load = self.load_checkpoint

        def load_without_config(*args, **kwargs):
            checkpoint = load(*args, **kwargs)
            checkpoint['meta'].pop('config', None)
            return checkpoint

        self.load_checkpoint = load_without_config
        try:
            return resume(self, *args, **kwargs)
        finally:
            del self.load_checkpoint  # the class's own is visible again

    Runner.resume = wrapped


def _on_cpu():
    """Whether mmengine would train on the CPU: no CUDA device, nor one of its other accelerators."""
    from mmengine.device import get_device

    return get_device() == 'cpu'


def initialize_on_cpu():
    """Lets mmengine's launchers start processes that have no GPU.

    Fault: ``mmengine.dist.init_dist`` (0.10.7, 0.10.12) calls ``torch.cuda.set_device`` where there is no GPU as well.
    There the call is left out, and gloo is used in the place of nccl. mmengine also leaves the process group open, and
    gloo's threads then outlive the interpreter: about one process in five, on a busy machine, was aborted at its end
    (``terminate called without an active exception``; torch 2.13).
    """
    from mmengine.dist import utils

    for name in ('_init_dist_pytorch', '_init_dist_slurm', '_init_dist_mpi'):
        initialize = getattr(utils, name)
        if not hasattr(initialize, '__wrapped__'):
            setattr(utils, name, _without_set_device(initialize))


def _without_set_device(initialize):
    @functools.wraps(initialize)
    def wrapped(backend, **kwargs):
        if not _on_cpu():
            return initialize(backend, **kwargs)
        with _swapped(torch.cuda, 'set_device', lambda device: None):
            initialize('gloo' if backend == 'nccl' else backend, **kwargs)
        atexit.register(_close_process_group)

    return wrapped


def _close_process_group():
    """Ends gloo's threads: they are joined once the group, and every model that was wrapped for it, are gone."""
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def exchange_names_as_json():
    """Lets mmdet's ``all_reduce_dict`` send the names of its tensors as JSON.

    Fault: it unpickles what rank 0 broadcasts (CVE-2024-12044; mmdet 3.3.0, onedl-mmdetection 3.5.1), running code of
    whoever can join the process group. mmdet's ``SyncNormHook`` calls it. The bytes travel on the device that the group
    communicates on; mmdet insists on CUDA.
    """
    from mmdet.utils import dist_utils
    from mmengine.dist.utils import get_comm_device

    if not hasattr(dist_utils, 'pickle'):
        return  # mended upstream

    def to_tensor(names, device=None):
        return torch.tensor(list(json.dumps(names).encode()), dtype=torch.uint8, device=get_comm_device())

    def from_tensor(tensor):
        return json.loads(bytes(tensor.tolist()))

    dist_utils.obj2tensor, dist_utils.tensor2obj = to_tensor, from_tensor


def prepare_config(cfg):
    """Fits the config of a training or test run to a machine without a GPU, in place; elsewhere leaves it as it is.

    SyncBN becomes BN (it fails on the CPU once a process group exists), processes talk through gloo, and
    DistributedDataParallel gets no device ids, which mmengine passes always. One log line tells of the first.

    Args:
        cfg (mmengine.Config): The config after the command line's options; ``cfg.launcher`` tells whether processes are
            launched.

    Returns:
        mmengine.Config: ``cfg``.

    Raises:
        InputError: If ``optim_wrapper`` asks for mixed precision, which mmengine has on a GPU alone.
    """
    if not _on_cpu():
        return cfg
    from mmengine.logging import print_log

    if str((cfg.get('optim_wrapper') or {}).get('type')).endswith('AmpOptimWrapper'):
        raise InputError('AmpOptimWrapper needs a GPU and none is usable here: drop --amp or use a machine with a GPU')
    count = _replace_sync_bn(cfg.get('model'))
    if cfg.get('sync_bn'):  # mmengine's own way to ask for it in the whole model
        cfg.sync_bn = None
        count += 1
    if count:
        print_log(f'SyncBN became BN ({count} x): it needs a GPU, and none is usable here', logger='current')
    cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
    if cfg.get('launcher', 'none') != 'none':
        # The first two are what mmengine passes where model_wrapper_cfg is not given.
        cfg.model_wrapper_cfg = {
            'broadcast_buffers': False,
            'find_unused_parameters': cfg.get('find_unused_parameters', False),
            'type': 'MMDistributedDataParallel',
            **(cfg.get('model_wrapper_cfg') or {}),
            'device_ids': None,
        }
    return cfg


def _replace_sync_bn(node):
    """Replaces SyncBN by BN in a part of a config; returns how many there were."""
    if isinstance(node, (list, tuple)):
        return sum(map(_replace_sync_bn, node))
    if not isinstance(node, dict):
        return 0
    count = sum(map(_replace_sync_bn, node.values()))
    scope, dot, name = str(node.get('type')).rpartition('.')
    if name in ('SyncBN', 'MMSyncBN'):
        node['type'] = f'{scope}{dot}BN'
        # Arguments of SyncBatchNorm and of mmcv's SyncBatchNorm that BatchNorm does not know.
        for argument in ('process_group', 'group', 'stats_mode'):
            node.pop(argument, None)
        count += 1
    return count
