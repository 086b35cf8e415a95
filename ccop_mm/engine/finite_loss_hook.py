"""Stops a run whose loss is NaN or infinite, and keeps what it takes to find out why."""

from pathlib import Path

import torch
import torch.distributed as torch_dist
from mmengine.dist import barrier, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from mmselfsup.registry import HOOKS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ccop_mm.engine.step_dump import images_of, write_dump
from ccop_mm.errors import InputError
from ccop_mm.models.queue import FeatureQueue


class NonFiniteLossError(InputError):
    """The loss is NaN or infinite; the message tells when, in which images, and what replays the step.

    An InputError, for the user needs the same of it: one line and an exit code, not a traceback that ends in the
    optimizer. A photo, a box, the learning rate or the precision is at fault far more often than the program.
    """


class Verdict:
    """Which ranks' losses are not finite: asked on the device, and on its way to the host while the device goes on.

    Args:
        losses (Tensor): ``(L,)``, this rank's losses.
    """

    def __init__(self, losses: Tensor) -> None:
        world = get_world_size()
        self._flags = torch.zeros(world, device=losses.device)
        self._flags[get_rank()] = ~losses.isfinite().all()
        self._work = torch_dist.all_reduce(self._flags, async_op=True) if world > 1 else None
        self._copied = None
        if self._flags.is_cuda:
            # On a stream of its own: the backward pass need not wait until every rank's forward pass is done.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                if self._work is not None:
                    self._work.wait()
                self._on_host = torch.empty(world, pin_memory=True).copy_(self._flags, non_blocking=True)
                self._copied = stream.record_event()

    def ranks(self) -> list[int]:
        """The ranks with a loss that is not finite, the same on all of them. Waits for their forward passes alone."""
        if self._copied is not None:
            self._copied.synchronize()
            return self._on_host.nonzero().flatten().tolist()
        if self._work is not None:
            self._work.wait()
        return self._flags.nonzero().flatten().tolist()


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Ends training at the first loss that is NaN or infinite, before the optimizer writes it into the weights.

    The losses are judged on the device after the forward pass. The verdict is read just before the optimizer's step, or
    after the iteration if it makes none (gradient accumulation; a scaler that skips it). On a GPU the backward pass is
    queued by then, so the host waits for the end of the forward pass and the device for nothing. With several ranks an
    asynchronous all-reduce of one number per rank tells all of them, for if one left alone the others would hang. (The
    gradients that they exchange anyway do not tell: those of an infinite loss may be finite, and a scaler hides them.)

    Then every rank raises :class:`NonFiniteLossError`. Before that, each rank whose own losses are at fault logs its
    images and writes ``work_dir/nonfinite_iter_N_rank_R.pth`` for ``tools/replay.py``, N counted from 1 as in the log:
    its batch as the loader gave it, the config, the random state, and the model as the failing forward pass used it.
    The weights are still those. Buffers that a forward pass overwrites are copied before each, except for CCOP's queues
    (67 MB at the paper's length; they remember the few keys that a step replaces) and running statistics (a training
    step does not read them). The key encoder has moved on already, which the replay does not repeat. The file is as
    large as a checkpoint without optimizer state (526 MB for the paper's model) and the batch.

    If gradients are at fault while the loss is finite, it is the next iteration that ends here, and its replay says
    that the weights are not finite.
    """

    def __init__(self) -> None:
        self._batch = None
        self._before: dict | None = None
        self._losses: dict[str, Tensor] = {}
        self._verdict: Verdict | None = None

    def before_train(self, runner: Runner) -> None:
        """Attaches to the model's forward pass and to the optimizer's step."""
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        self._model = model
        volatile = _volatile_state(model)
        device = next(model.parameters()).device.type

        # Functions, not methods: with a method, a deep copy of the model would copy this hook.
        def before_forward(module, args, kwargs):
            if self._batch is not None and kwargs.get('mode') == 'loss':
                self._check(runner)  # of another forward pass in this iteration
                self._before = None  # first, so that its memory is used again
                self._before = _snapshot(volatile, device)

        def after_forward(module, args, kwargs, losses):
            if self._batch is not None and kwargs.get('mode') == 'loss':
                self._judge(losses)

        def before_step(optimizer, args, kwargs):
            self._check(runner)

        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        self._handles = [
            model.register_forward_pre_hook(before_forward, with_kwargs=True),
            model.register_forward_hook(after_forward, with_kwargs=True),
            *(each.optimizer.register_step_pre_hook(before_step) for each in wrappers),
        ]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Keeps the batch at hand."""
        self._batch = data_batch

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Reads the verdict if no step of the optimizer has."""
        self._check(runner)
        self._batch = None

    def after_train(self, runner: Runner) -> None:
        """Lets go of model and optimizer."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _judge(self, losses: dict) -> None:
        _, values = self._model.parse_losses(losses)
        self._losses = {name: value for name, value in values.items() if 'loss' in name}
        self._verdict = Verdict(torch.stack([value.float() for value in self._losses.values()]))

    def _check(self, runner: Runner) -> None:
        verdict, self._verdict = self._verdict, None
        ranks = [] if verdict is None else verdict.ranks()
        if not ranks:
            return
        when = f'at iteration {runner.iter + 1} of {runner.max_iters}'
        if get_rank() in ranks:
            message = self._report(runner, when)
        else:
            others = ', '.join(map(str, ranks))
            message = (
                f'stopped {when}: the loss is not finite on rank {others}, see there (on this one, {get_rank()}, it is)'
            )
        # A launcher ends all ranks as soon as one has ended; none may be writing then.
        barrier()
        raise NonFiniteLossError(message)

    def _report(self, runner: Runner, when: str) -> str:
        """Writes the dump and logs the images; returns the line for the user."""
        losses = {name: value.item() for name, value in self._losses.items()}
        queues = _queues_before(self._model)
        images = images_of(self._batch)
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
                **{**self._before, 'state': {**self._model.state_dict(), **self._before['state'], **queues}},
            )
            dump = f'which image, and where: python tools/replay.py {path} ({path.stat().st_size / 2**20:.0f} MiB)'
        except (OSError, RuntimeError) as error:  # torch wraps the first in the second
            dump = f'{path}, which would replay it, could not be written: {" ".join(str(error).split())}'
        runner.logger.error(
            f'images of rank {get_rank()} {when}, where the loss is not finite:\n'
            + '\n'.join(f'  {image["img_id"]}  {image["img_path"]}' for image in images)
        )
        values = ', '.join(f'{name} {value:.4g}' for name, value in losses.items())
        ids = ', '.join(str(image['img_id']) for image in images)
        return f'the loss is not finite {when} on rank {get_rank()}: {values}; images {ids}; {dump}'


def _volatile_state(model: nn.Module) -> list[tuple[str, nn.Module, str | None]]:
    """What a forward pass may overwrite and a later one reads: key in the state dict, owner, name of the buffer.

    The name is None for a module's extra state. Running statistics are left out: a training step does not read them;
    and so are queues (:func:`_queues_before`).
    """
    found = []
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = prefix and '.'
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            found.append((f'{prefix}{dot}_extra_state', module, None))
        if not isinstance(module, (_BatchNorm, FeatureQueue)):
            names = [name for name, _ in module.named_buffers(recurse=False)]
            found += [(f'{prefix}{dot}{name}', module, name) for name in names if name in module.state_dict()]
    return found


def _queues_before(model: nn.Module) -> dict[str, Tensor]:
    """The queues' part of the state dict, as the last forward pass found them."""
    return {
        f'{prefix}{prefix and "."}{name}': value
        for prefix, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, FeatureQueue)
        for name, value in module.before_enqueue().items()
    }


def _snapshot(volatile: list[tuple[str, nn.Module, str | None]], device: str) -> dict:
    """What decides a forward pass besides batch, config and weights; copied where it lies, without waiting."""
    state = {
        key: module.get_extra_state() if name is None else getattr(module, name).clone()
        for key, module, name in volatile
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
