"""mmengine: checkpoint loading, resuming, and distributed training on the CPU."""

import atexit
import functools
import gc
import importlib.util
import inspect
import os
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch

from ccop_mm.compat.attributes import swap_attribute
from ccop_mm.compat.torch import load_address, load_weights_only

OWN_PACKAGE = 'ccop_mm'


def remove_unsafe_fallback() -> None:
    """Makes onedl-mmengine's checkpoint loader refuse files that cannot be loaded safely.

    Problem (onedl-mmengine 0.10.12):
        If ``torch.load(weights_only=True)`` refuses a file, ``_safe_torch_load`` loads it again with
        ``weights_only=False``, which executes any code in the file. mmengine 0.10.7 lacks this function and uses
        torch's default.

    Fix:
        Replace the function by :func:`ccop_mm.compat.torch.load_weights_only`.

    Remove when:
        onedl-mmengine no longer falls back to ``weights_only=False``.
    """
    from mmengine.runner import checkpoint

    if hasattr(checkpoint, '_safe_torch_load'):
        checkpoint._safe_torch_load = load_weights_only


def guard_downloads() -> None:
    """Makes mmengine's loader of remote checkpoints refuse files that cannot be loaded safely.

    Problem (mmengine 0.10.7, onedl-mmengine 0.10.12):
        ``https://``, ``torchvision://``, ``open-mmlab://`` and other prefixes all lead to ``load_from_http``, which
        calls torch's ``load_url`` without ``weights_only``. A downloaded file can therefore execute code.

    Fix:
        Replace ``load_url`` by :func:`ccop_mm.compat.torch.load_address`.

    Remove when:
        mmengine passes ``weights_only=True`` and caches downloads under a name that is unique for each URL.
    """
    from mmengine.runner import checkpoint

    checkpoint.load_url = load_address


def ignore_config_text_on_resume() -> None:
    """Makes ``Runner.resume`` ignore the config text in a checkpoint.

    Problem (mmengine 0.10.7, onedl-mmengine 0.10.12):
        ``Runner.resume`` parses ``meta['config']``, the text of a Python config, by executing it. A checkpoint can
        therefore execute code although its tensors were loaded safely.

    Fix:
        Drop the entry before ``resume`` reads it. Nothing is lost: mmengine writes the config to ``meta['cfg']``, and
        ``resume`` only reads ``gpu_ids`` from ``meta['config']``.

    Remove when:
        ``Runner.resume`` no longer reads ``meta['config']``.
    """
    from mmengine.runner import Runner

    resume = Runner.resume
    if hasattr(resume, '__wrapped__'):
        return

    @functools.wraps(resume)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        load = self.load_checkpoint

        def load_without_config(*args: Any, **kwargs: Any) -> Any:
            checkpoint = load(*args, **kwargs)
            checkpoint['meta'].pop('config', None)
            return checkpoint

        self.load_checkpoint = load_without_config
        try:
            return resume(self, *args, **kwargs)
        finally:
            del self.load_checkpoint  # uncovers the method of the class

    Runner.resume = wrapped


def runs_on_cpu() -> bool:
    """Returns whether mmengine would train on the CPU, i.e. finds neither a GPU nor another accelerator."""
    from mmengine.device import get_device

    return get_device() == 'cpu'


def initialize_on_cpu() -> None:
    """Makes mmengine's launchers work for processes without a GPU.

    Problem (mmengine 0.10.7, onedl-mmengine 0.10.12; torch 2.13):
        ``mmengine.dist.init_dist`` calls ``torch.cuda.set_device`` even if there is no GPU. mmengine also leaves the
        process group open at exit. gloo's threads then outlive the interpreter, which aborts some processes with
        ``terminate called without an active exception``.

    Fix:
        Without a GPU, skip the call, use gloo instead of NCCL, and destroy the process group at exit.

    Remove when:
        ``init_dist`` supports the CPU and mmengine closes the process group.
    """
    from mmengine.dist import utils

    for name in ('_init_dist_pytorch', '_init_dist_slurm', '_init_dist_mpi'):
        initialize = getattr(utils, name)
        if not hasattr(initialize, '__wrapped__'):
            setattr(utils, name, _without_set_device(initialize))


def _without_set_device(initialize: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(initialize)
    def wrapped(backend: str, **kwargs: Any) -> None:
        if not runs_on_cpu():
            return initialize(backend, **kwargs)
        with swap_attribute(torch.cuda, 'set_device', lambda device: None):
            initialize('gloo' if backend == 'nccl' else backend, **kwargs)
        atexit.register(_destroy_process_group)

    return wrapped


def _destroy_process_group() -> None:
    """Destroys the process group. gloo joins its threads once the group and all models wrapped for it are freed."""
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def resume_within_epoch() -> None:
    """Makes ``EpochBasedTrainLoop`` resume in the middle of an epoch.

    Problem (mmengine 0.10.7, onedl-mmengine 0.10.12):
        A loop resumed from a checkpoint that was saved within an epoch starts the epoch again but keeps the iteration:
        images are used twice, and learning rate, curriculum and the last iteration are shifted.

    Fix:
        If a hook has set the loop's attribute ``first_batch``, the next epoch starts with this batch, whose number the
        hooks get. The batch sampler skips the others (:class:`ccop_mm.datasets.sampler.ResumableBatchSampler`). If it
        is the number of batches, only the hooks and the validation at the end of the epoch remain.

    Remove when:
        ``EpochBasedTrainLoop`` supports this.
    """
    from mmengine.runner import EpochBasedTrainLoop

    run_epoch = EpochBasedTrainLoop.run_epoch
    if hasattr(run_epoch, '__wrapped__'):
        return

    @functools.wraps(run_epoch)
    def wrapped(self: Any) -> None:
        first = self.__dict__.pop('first_batch', 0)
        if not first:
            return run_epoch(self)
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        if first < len(self.dataloader):
            self.dataloader.batch_sampler.skip(first)
            for batch_idx, data_batch in enumerate(self.dataloader, first):
                self.run_iter(batch_idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    EpochBasedTrainLoop.run_epoch = wrapped


def resume_without_loading() -> None:
    """Makes ``IterBasedTrainLoop`` skip the batches of earlier iterations without loading them.

    Problem (mmengine 0.10.7, onedl-mmengine 0.10.12):
        A resumed loop advances its data loader. mmengine loads and discards all earlier batches; onedl-mmengine does so
        for batch samplers other than torch's, such as mmdet's ``AspectRatioBatchSampler``, if there are workers.
        mmengine also starts the workers when the loop is built, before hooks can prepare the data loader.

    Fix:
        Create the iterator when the first batch is needed. Skip batches in the batch sampler if it has a method
        ``skip`` (:class:`ccop_mm.datasets.sampler.ResumableBatchSampler`).

    Remove when:
        mmengine creates the iterator late and skips batches in any batch sampler.
    """
    from mmengine.runner import loops

    upstream: Any = loops._InfiniteDataloaderIterator
    if hasattr(upstream, 'is_lazy'):
        return
    calls_skip_iter = hasattr(upstream, 'skip_iter')

    class InfiniteDataloaderIterator(upstream):
        is_lazy = True

        def __init__(self, dataloader: Any) -> None:
            self._dataloader = dataloader
            self._epoch = 0
            self._created: Any = None
            self.resumed_iter = self._discarded = 0

        def __next__(self) -> Any:
            if self.resumed_iter and hasattr(self._dataloader.batch_sampler, 'skip'):
                self.skip_iter(self.resumed_iter)
                self._discarded, self.resumed_iter = self.resumed_iter, 0
            if self._discarded:
                self._discarded -= 1
                return None
            return super().__next__()

        @property
        def _iterator(self) -> Any:
            if self._created is None:
                self._created = iter(self._dataloader)
            return self._created

        @_iterator.setter
        def _iterator(self, iterator: Any) -> None:
            self._created = iterator

        def skip_iter(self, num_iters: int) -> None:
            skip = getattr(self._dataloader.batch_sampler, 'skip', None)
            if skip is None:
                super().skip_iter(num_iters)
            else:
                self._epoch = skip(num_iters)
                self._created = None

    loops._InfiniteDataloaderIterator = InfiniteDataloaderIterator
    if calls_skip_iter:
        return
    run = loops.IterBasedTrainLoop.run

    @functools.wraps(run)
    def wrapped(self: Any) -> Any:
        # mmengine 0.10.7 requests and discards the batches of this number of iterations.
        self.dataloader_iterator.resumed_iter = self._iter
        return run(self)

    loops.IterBasedTrainLoop.run = wrapped


def locate_packages() -> None:
    """Makes mmengine find installed packages without ``pkg_resources``.

    Problem (mmengine 0.10.7):
        ``is_installed`` and ``get_installed_path`` import ``pkg_resources``, which setuptools 82 removed. Every config
        that inherits from ``mmdet::...`` then fails with a ModuleNotFoundError.

    Fix:
        Where ``pkg_resources`` is missing, replace both functions by ones that use :mod:`importlib`.

    Remove when:
        The oldest supported mmengine does not import ``pkg_resources``.
    """
    if importlib.util.find_spec('pkg_resources') is not None:
        return
    import mmengine.hub.hub
    from mmengine.config import config
    from mmengine.utils import package_utils

    if 'pkg_resources' in inspect.getsource(package_utils.is_installed):
        for module in (package_utils, mmengine.utils, config, mmengine.hub.hub):
            for function in (is_installed, get_installed_path):
                if hasattr(module, function.__name__):
                    setattr(module, function.__name__, function)


def is_installed(package: str) -> bool:
    """Returns whether a distribution or an importable package of this name is installed."""
    try:
        metadata.distribution(package)
        return True
    except metadata.PackageNotFoundError:
        spec = importlib.util.find_spec(package)
        return spec is not None and spec.origin is not None


def get_installed_path(package: str) -> str:
    """Returns the folder of a package, given the name of the package or of its distribution.

    Raises:
        ModuleNotFoundError: There is no such package.
    """
    name = package
    try:
        top_level = (metadata.distribution(package).read_text('top_level.txt') or '').split()
    except metadata.PackageNotFoundError:
        top_level = []
    if top_level and package not in top_level:  # such as mmsegmentation, whose package is mmseg
        name = top_level[0]
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f'{package} is not installed')
    return os.path.dirname(spec.origin)


def resolve_own_configs() -> None:
    """Makes ``ccop_mm::ccop/NAME.py`` a config file of this package, in ``_base_`` and in ``get_config``.

    Problem (mmengine 0.10.7, onedl-mmengine 0.10.12):
        ``PACKAGE::`` is only accepted for a fixed list of packages. The package also becomes the registry scope of the
        base config, but ccop_mm has no registry of its own: its modules are registered in mmselfsup's and mmdet's.

    Fix:
        Add the package to the list, and leave the scope of its configs to their ``default_scope``.

    Remove when:
        mmengine accepts any installed package, and the scope of a config can be declared.
    """
    from mmengine.config import Config
    from mmengine.config.utils import MODULE2PACKAGE

    if OWN_PACKAGE in MODULE2PACKAGE:
        return
    MODULE2PACKAGE[OWN_PACKAGE] = OWN_PACKAGE
    original = Config._get_cfg_path

    @functools.wraps(original)
    def get_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        path, scope = original(cfg_path, filename)
        return path, None if scope == OWN_PACKAGE else scope

    Config._get_cfg_path = staticmethod(get_path)
