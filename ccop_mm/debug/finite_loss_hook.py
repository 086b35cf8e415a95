"""Stops a run whose loss is NaN or infinite, and dumps the training step for debugging."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist
from mmengine.dist import barrier, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from mmselfsup.registry import HOOKS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ccop_mm.debug.step_dump import batch_images, write_dump
from ccop_mm.models.queue import FeatureQueue
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.model import unwrap_model
from ccop_mm.utils.text import format_truncated, single_line

#: Key in the state dict, module, and name of the buffer; None for the module's extra state.
StateEntry = tuple[str, nn.Module, str | None]


class NonFiniteLossError(InputError):
    """Raised when the loss is NaN or infinite. The message contains the iteration, the images, and the replay command.

    It is an InputError because an image, a box, the learning rate or the precision is a more likely cause than a bug,
    and a traceback that ends in the optimizer does not help to find it.
    """


class AsyncFiniteCheck:
    """Finds the ranks with a non-finite loss, without blocking until the result is needed.

    Losses are checked on the device. The result is reduced over all ranks and copied to the host asynchronously.

    Args:
        losses (Tensor): ``(L,)``, losses of this rank.
    """

    def __init__(self, losses: Tensor) -> None:
        world_size = get_world_size()
        self._flags = torch.zeros(world_size, device=losses.device)
        self._flags[get_rank()] = ~losses.isfinite().all()
        self._work = torch_dist.all_reduce(self._flags, async_op=True) if world_size > 1 else None
        self._copied = None
        if self._flags.is_cuda:
            # A separate stream, so that the backward pass does not wait for the forward passes of all ranks.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                if self._work is not None:
                    self._work.wait()
                self._host_flags = torch.empty(world_size, pin_memory=True).copy_(self._flags, non_blocking=True)
                self._copied = stream.record_event()

    def failing_ranks(self) -> list[int]:
        """Returns the ranks with a non-finite loss, equal on all ranks. Blocks until their forward passes are done."""
        if self._copied is not None:
            self._copied.synchronize()
            return self._host_flags.nonzero().flatten().tolist()
        if self._work is not None:
            self._work.wait()
        return self._flags.nonzero().flatten().tolist()


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops training at the first loss that is NaN or infinite, before the optimizer updates the weights.

    Losses are checked on the device after the forward pass. The host reads the result right before the optimizer step,
    or after the iteration if there is no step (gradient accumulation, or a gradient scaler that skips it). On a GPU,
    the backward pass is queued by then, so the host waits for the forward pass and the device does not wait at all. An
    asynchronous all-reduce of one number per rank informs all ranks: if a single rank stopped, the others would hang.
    (The gradients that ranks exchange are not sufficient: those of an infinite loss may be finite, and a gradient
    scaler hides non-finite ones.)

    Then every rank raises :class:`NonFiniteLossError`. Each rank whose own losses are non-finite first logs its images
    and writes ``work_dir/nonfinite_iter_N_rank_R.pth`` for ``tools/misc/replay.py``, where N counts from 1 as in the
    log. The file contains the batch of the data loader, the config, the random number generator states, and the model
    state that the failing forward pass used. Weights have not changed since. Buffers that a forward pass modifies are
    copied before each one, except for CCOP's queues (67 MB at the paper's length; they store the few keys that a step
    overwrites) and running statistics (not read in a training step). The key encoder is dumped after its update, which
    the replay does not repeat. The file has the size of the batch and a checkpoint without optimizer state (526 MB for
    the paper's model).

    The step of a detector cannot be replayed, because its data samples contain mmdet's boxes and masks. No file is
    written, and the message contains the paths of its images instead.

    If the gradients are non-finite and the loss is finite, training stops in the next iteration, and its replay reports
    non-finite weights.
    """

    def __init__(self) -> None:
        self._batch: Any = None
        self._state_before: dict[str, Any] = {}
        self._losses: dict[str, Tensor] = {}
        self._pending: AsyncFiniteCheck | None = None

    def before_train(self, runner: Runner) -> None:
        """Registers hooks on the model's forward pass and the optimizer step."""
        model = unwrap_model(runner.model)
        self._model: Any = model
        modified = _modified_state(model)
        device = next(model.parameters()).device.type

        # Functions instead of methods: a deep copy of the model would copy the owner of a method.
        def before_forward(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if self._batch is not None and kwargs.get('mode') == 'loss':
                self._finish_check(runner)  # of a previous forward pass in this iteration
                self._state_before = {}  # frees the previous copies before new ones are allocated
                self._state_before = _copy_state(modified, device)

        def after_forward(module: nn.Module, args: tuple, kwargs: dict, losses: dict) -> None:
            if self._batch is not None and kwargs.get('mode') == 'loss':
                self._start_check(losses)

        def before_step(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
            self._finish_check(runner)

        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        self._handles = [
            model.register_forward_pre_hook(before_forward, with_kwargs=True),
            model.register_forward_hook(after_forward, with_kwargs=True),
            *(each.optimizer.register_step_pre_hook(before_step) for each in wrappers),
        ]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Stores the batch."""
        self._batch = data_batch

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Reads the result of the check if no optimizer step did."""
        self._finish_check(runner)
        self._batch = None

    def after_train(self, runner: Runner) -> None:
        """Removes the hooks from the model and the optimizer."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _start_check(self, losses: dict) -> None:
        _, values = self._model.parse_losses(losses)
        self._losses = {name: value for name, value in values.items() if 'loss' in name}
        self._pending = AsyncFiniteCheck(torch.stack([value.float() for value in self._losses.values()]))

    def _finish_check(self, runner: Runner) -> None:
        check, self._pending = self._pending, None
        ranks = [] if check is None else check.failing_ranks()
        if not ranks:
            return
        when = f'at iteration {runner.iter + 1} of {runner.max_iters}'
        if get_rank() in ranks:
            message = self._dump(runner, when)
        else:
            message = (
                f'rank {get_rank()} stopped {when}: the loss is non-finite on rank {", ".join(map(str, ranks))}; see '
                'the message of that rank'
            )
        # A launcher terminates all ranks as soon as one exits: wait until all dumps are written.
        barrier()
        raise NonFiniteLossError(message)

    def _dump(self, runner: Runner, when: str) -> str:
        """Logs the images and writes the dump; returns the error message."""
        losses = {name: value.item() for name, value in self._losses.items()}
        images = batch_images(self._batch)
        values = ', '.join(f'{name} {value:.4g}' for name, value in losses.items())
        runner.logger.error(
            f'images of rank {get_rank()} {when}, whose loss is non-finite:\n'
            + '\n'.join(f'  {image["img_id"]}  {image["img_path"]}' for image in images)
        )
        what = f'the loss is non-finite {when} on rank {get_rank()}: {values}'
        if runner.default_scope is not None and runner.default_scope.scope_name == 'mmdet':
            paths = format_truncated([f'{image["img_id"]} ({image["img_path"]})' for image in images])
            return f'{what}; images {paths}; check their boxes and masks, the initial weights and the learning rate'
        state = {**self._model.state_dict(), **self._state_before['state'], **_queues_before(self._model)}
        path = Path(runner.work_dir, f'nonfinite_iter_{runner.iter + 1}_rank_{get_rank()}.pth')
        try:
            write_dump(
                path,
                iteration=runner.iter + 1,
                max_iters=runner.max_iters,
                rank=get_rank(),
                world_size=get_world_size(),
                seed=runner.seed,
                progress=getattr(getattr(self._model, 'box_jitter', None), 'progress', None),
                losses=losses,
                images=images,
                batch=self._batch,
                config=runner.cfg.to_dict(),
                **{**self._state_before, 'state': state},
            )
            size = path.stat().st_size / 2**20
            dump = f'to find the image and the module, run python tools/misc/replay.py {path} ({size:.0f} MiB)'
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError for some I/O errors
            dump = f'the dump {path} could not be written: {single_line(error)}'
        ids = ', '.join(str(image['img_id']) for image in images)
        return f'{what}; images {ids}; {dump}'


def _modified_state(model: nn.Module) -> list[StateEntry]:
    """Returns the entries of the state dict that a forward pass may modify and a later one reads.

    Running statistics are excluded because a training step does not read them, and queues because
    :func:`_queues_before` restores them.
    """
    entries: list[StateEntry] = []
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = prefix and '.'
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            entries.append((f'{prefix}{dot}_extra_state', module, None))
        if not isinstance(module, (_BatchNorm, FeatureQueue)):
            names = [name for name, _ in module.named_buffers(recurse=False)]
            entries += [(f'{prefix}{dot}{name}', module, name) for name in names if name in module.state_dict()]
    return entries


def _queues_before(model: nn.Module) -> dict[str, Tensor]:
    """Returns the state dict entries of all queues as they were before the last forward pass."""
    return {
        f'{prefix}{prefix and "."}{name}': value
        for prefix, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, FeatureQueue)
        for name, value in module.before_enqueue().items()
    }


def _copy_state(entries: list[StateEntry], device: str) -> dict[str, Any]:
    """Copies what a forward pass depends on besides batch, config and weights, without device synchronization.

    Args:
        entries (list[StateEntry]): State to copy on its own device.
        device (str): Device type of the model.
    """
    state = {
        key: module.get_extra_state() if name is None else getattr(module, name).clone()
        for key, module, name in entries
    }
    autocast = torch.is_autocast_enabled(device)
    return dict(
        state=state,
        device=device,
        autocast=str(torch.get_autocast_dtype(device)) if autocast else None,
        initial_seed=torch.initial_seed(),
        rng_state=torch.get_rng_state(),
        cuda_rng_state=torch.cuda.get_rng_state() if device == 'cuda' else None,
    )
