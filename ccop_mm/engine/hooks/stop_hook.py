"""Stops a run at a signal with a checkpoint from which it resumes at the next iteration."""

import bisect
import contextlib
import ctypes
import functools
import logging
import math
import multiprocessing
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.dist import barrier, get_rank, get_world_size, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmselfsup.registry import HOOKS
from torch.utils.data import DataLoader

from ccop_mm.datasets.sampler import ResumableBatchSampler, make_resumable
from ccop_mm.debug.finite_loss_hook import AsyncFiniteCheck
from ccop_mm.engine.hooks.checkpoint_hook import SAFE_BACKEND, write_pointer
from ccop_mm.utils.commands import console_command

#: SIGTERM and SIGUSR1 are sent by job schedulers before the time limit, SIGINT by Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
#: Key of the message hub under which the checkpoint describes how the run was stopped.
STOPPED = 'stopped'

#: Interval in seconds at which a worker checks that its parent process is alive.
PARENT_CHECK_SECONDS = 5

#: Linux: option of ``prctl`` for the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1

#: Original handlers, restored by :func:`restore_signal_handlers`.
_original_handlers: dict[signal.Signals, Any] = {}


class StoppedBySignal(SystemExit):
    """Ends the process after the checkpoint was saved. The exit code is 128 plus the number of the signal."""


@HOOKS.register_module()
class StopHook(Hook):
    """Ends a run at SIGTERM, SIGUSR1 or Ctrl-C after the running optimizer step, with a checkpoint to resume from.

    The checkpoint ``iter_N.pth`` contains the complete state after iteration N; ``last_checkpoint`` names it. One line
    states the iteration, the file and the command to resume. The exit code is 143 (SIGTERM), 138 (SIGUSR1) or 130
    (Ctrl-C). A second Ctrl-C aborts at once. The file is deleted after the next regular checkpoint. A run can also be
    stopped during validation, which a resumed run repeats.

    The resumed run continues within the epoch: batches of earlier iterations are skipped without loading them, and
    their random numbers are not missed because every sample is seeded
    (:class:`ccop_mm.datasets.sampler.ResumableBatchSampler`). This applies to all checkpoints that are saved within an
    epoch. Losses equal those of an uninterrupted run if :class:`IterationSeedHook` seeds the iterations.

    With several processes, all stop after the same iteration, the one after the signal, even if only one process
    received it: an asynchronous all-reduce of one number per rank, whose result is read in the next iteration. With one
    process, nothing is added to an iteration. Signals to a process group also reach the workers of the data loaders,
    which therefore ignore them.

    Processes that torchrun has started also stop if torchrun is killed (Linux).

    The hook must be the last one; ``tools/train.py`` adds it to every run. It has no effect outside the main thread and
    for signals that the parent process ignores.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._interrupts = 0
        self._stopping = False
        self._pid = os.getpid()
        self._pending: AsyncFiniteCheck | None = None
        self._resumed_within_epoch = False
        self._training = False
        self._stop_checkpoint: str | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Finds out whether the checkpoint was saved within an epoch."""
        meta = checkpoint.get('meta') or {}
        if length := meta.get('batches_per_epoch'):
            self._resumed_within_epoch = meta['iter'] != meta['epoch'] * length

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds the length of an epoch, which identifies checkpoints that were saved within an epoch."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            checkpoint['meta']['batches_per_epoch'] = len(runner.train_dataloader)

    def before_train(self, runner: Runner) -> None:
        """Installs the signal handlers, prepares the data loaders, and repeats a validation that was interrupted."""
        self._training = True
        self._install_handlers()
        loader, loop = runner.train_dataloader, runner.train_loop
        resumable = make_resumable(loader, runner.seed, get_rank())
        _shield_workers(loader)
        if runner.val_loop is not None:
            _shield_workers(runner.val_dataloader)
        if resumable and self._resumed_within_epoch and isinstance(loop, EpochBasedTrainLoop):
            first = runner.iter - runner.epoch * len(loader)
            loop.first_batch = first if 0 < first <= len(loader) else 0
        stopped = runner.message_hub.pop_info(STOPPED) or {}
        self._remember(runner, stopped.get('checkpoint'))
        if stopped.get('validate') and runner.iter > 0 and runner.val_loop is not None:
            runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        """Sets the iteration that seeds the next batch."""
        sampler = runner.train_dataloader.batch_sampler
        if isinstance(sampler, ResumableBatchSampler):
            sampler.iteration = runner.iter

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Stops after the optimizer step if a signal was received."""
        self._delete_superseded(runner)
        if self._must_stop(runner) and _gradients_are_used(runner):
            iteration = runner.iter + 1
            self._stop(runner, runner.epoch, iteration, validate=_is_validated(runner, iteration))

    def after_train_epoch(self, runner: Runner) -> None:
        """Deletes the checkpoint of an earlier stop if a regular one was saved."""
        self._delete_superseded(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        """Computes the number of validation batches that every rank has."""
        self._common_batches = -1
        # EMAHook has exchanged the weights by now.
        if self._training and not any(isinstance(hook, EMAHook) for hook in runner.hooks):
            count = torch.tensor(len(runner.val_dataloader), device=_device(runner))
            if get_world_size() > 1:
                torch.distributed.all_reduce(count, op=torch.distributed.ReduceOp.MIN)
            self._common_batches = int(count)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence | None = None
    ) -> None:
        """Stops during validation; the weights are those after the last iteration."""
        if batch_idx < self._common_batches and self._must_stop(runner):
            self._stop(runner, runner.epoch, runner.iter, validate=True)

    def after_train(self, runner: Runner) -> None:
        """Restores the signal handlers: a run that has finished its training needs no checkpoint."""
        self._training = False
        if self._pending is not None:
            self._pending.failing_ranks()
            self._pending = None
        restore_signal_handlers()

    def _install_handlers(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler is signal.SIG_IGN or handler is None:  # ignored by the parent, or set by other than Python code
                continue
            _original_handlers.setdefault(number, handler)
            signal.signal(number, self._receive)
        # torchrun starts every process in a session of its own. If torchrun is killed, they would continue without it.
        if 'TORCHELASTIC_RUN_ID' in os.environ and sys.platform == 'linux':
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked process
            return
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                restore_signal_handlers()
                raise KeyboardInterrupt
            # Not print: the signal may have interrupted a write to the same stream.
            os.write(2, b'stopping after the running step; press Ctrl-C again to abort at once\n')
        self._received = self._received or signal.Signals(number)

    def _must_stop(self, runner: Runner) -> bool:
        """Returns whether a rank received a signal, equal on all ranks."""
        if get_world_size() == 1:
            return self._received is not None
        earlier = self._pending
        flag = torch.full((1,), 0.0 if self._received is None else math.inf, device=_device(runner))
        self._pending = AsyncFiniteCheck(flag)
        self._stopping = self._stopping or (earlier is not None and bool(earlier.failing_ranks()))
        return self._stopping

    def _stop(self, runner: Runner, epoch: int, iteration: int, validate: bool) -> None:
        """Saves the checkpoint, logs how to resume and ends the process.

        Args:
            runner (Runner): Runner whose state is saved.
            epoch (int): Number of completed epochs, including the work at their end.
            iteration (int): Number of completed iterations.
            validate (bool): Whether the resumed run starts with a validation.
        """
        number = self._received or signal.SIGTERM
        hook = _checkpoint_hook(runner)
        folder = runner.work_dir
        if hook is not None and isinstance(getattr(hook, 'file_backend', None), LocalBackend):
            folder = hook.out_dir
        path = Path(folder, f'iter_{iteration}.pth')
        superseded = self._stop_checkpoint
        # A regular checkpoint of the same name is replaced and stays.
        self._remember(runner, None if path.is_file() and path.name != superseded else path.name, validate)
        runner.save_checkpoint(
            str(folder),
            path.name,
            meta=dict(epoch=epoch, iter=iteration),
            by_epoch=False,
            backend_args=dict(backend=SAFE_BACKEND),
        )
        runner.message_hub.pop_info(STOPPED)  # another run of this process may have the same message hub
        if is_main_process():
            write_pointer(runner.work_dir, str(path))
            if superseded and superseded != path.name:
                Path(folder, superseded).unlink(missing_ok=True)
            where = f'iteration {iteration} of {runner.max_iters}'
            if isinstance(runner.train_loop, EpochBasedTrainLoop):
                where += f' (epoch {math.ceil(iteration / len(runner.train_dataloader))} of {runner.max_epochs})'
            line = f'stopped by {number.name} after {where}; checkpoint: {path}; to resume: {resume_command(sys.argv)}'
            runner.logger.warning(line)
            if all(handler.level > logging.WARNING for handler in runner.logger.handlers):
                print(line, file=sys.stderr)
        # A launcher terminates all ranks as soon as one exits: wait until the checkpoint is complete.
        barrier()
        if self._pending is not None:
            self._pending.failing_ranks()
        raise StoppedBySignal(128 + number)

    def _remember(self, runner: Runner, checkpoint: str | None, validate: bool = False) -> None:
        """Stores the name of the checkpoint to delete after the next regular one, also for the next run."""
        self._stop_checkpoint = checkpoint
        hook = _checkpoint_hook(runner)
        self._regular_checkpoint = getattr(hook, 'last_ckpt', None)
        if checkpoint or validate:
            runner.message_hub.update_info(STOPPED, dict(checkpoint=checkpoint, validate=validate))

    def _delete_superseded(self, runner: Runner) -> None:
        """Deletes the checkpoint of an earlier stop if a regular checkpoint was saved since."""
        if self._stop_checkpoint is None:
            return
        hook = _checkpoint_hook(runner)
        last = getattr(hook, 'last_ckpt', None)
        if hook is None or last is None or last == self._regular_checkpoint:
            return
        if is_main_process() and Path(last).name != self._stop_checkpoint:
            Path(hook.out_dir, self._stop_checkpoint).unlink(missing_ok=True)
        self._stop_checkpoint = None
        runner.message_hub.pop_info(STOPPED)


def restore_signal_handlers() -> None:
    """Restores the signal handlers that :class:`StopHook` replaced."""
    while _original_handlers:
        signal.signal(*_original_handlers.popitem())


def resume_command(argv: Sequence[str]) -> str:
    """Returns the command that resumes a run.

    Args:
        argv (Sequence[str]): Script and arguments of this process.
    """
    words, skip = [], False
    for word in argv:
        if skip and not word.startswith('-'):
            skip = False  # the checkpoint that this run was resumed from
            continue
        skip = word == '--resume'
        if word not in ('--resume', '--overwrite') and not word.startswith('--resume='):
            words.append(word)
    if words and Path(words[0]).name == 'pretrain.py':
        return 'repeat the command'  # resumes by itself
    if not words or Path(words[0]).name != 'train.py' or get_world_size() > 1:
        return 'repeat the command with --resume'
    return shlex.join([*console_command(words[0]), *words[1:], '--resume'])


def _checkpoint_hook(runner: Runner) -> Any:
    return next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)


def _device(runner: Runner) -> torch.device:
    return next(runner.model.parameters()).device


def _gradients_are_used(runner: Runner) -> bool:
    """Returns whether the optimizer has used all gradients; accumulated ones would be missing in the checkpoint."""
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return all(each.should_update() for each in wrappers)


def _is_validated(runner: Runner, iteration: int) -> bool:
    """Returns whether an iteration-based loop validates after this iteration.

    An epoch-based loop validates after its epoch, whose end the resumed run repeats.
    """
    loop = runner.train_loop
    if not isinstance(loop, IterBasedTrainLoop) or runner.val_loop is None or iteration < loop.val_begin:
        return False
    interval = loop.dynamic_intervals[bisect.bisect(loop.dynamic_milestones, iteration + 1) - 1]
    return iteration % interval == 0 or iteration == loop.max_iters


def _shield_workers(loader: DataLoader) -> None:
    """Makes the workers of a data loader ignore signals that do not come from their parent process."""
    if loader.num_workers == 0 or isinstance(loader.worker_init_fn, _ShieldedWorker):
        return
    loader.worker_init_fn = _ShieldedWorker(loader.worker_init_fn)
    create = loader._get_iterator

    @functools.wraps(create)
    def create_blocked() -> Any:
        # Workers inherit the mask: a signal cannot end them before they are shielded.
        with _blocked(SIGNALS):
            return create()

    loader._get_iterator = create_blocked


@contextlib.contextmanager
def _blocked(signals: Sequence[signal.Signals]) -> Iterator[None]:
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


class _ShieldedWorker:
    """Initializes a worker that ignores signals except SIGTERM of its parent, which shuts it down.

    The worker also ends if its parent was killed. torch's workers do not if this happens while they start, or if the
    pipe of their results is full: they wait until somebody reads it, and hold the reading end open themselves.

    Args:
        initialize (Callable, optional): Function to call afterwards with the number of the worker.
    """

    def __init__(self, initialize: Callable[[int], None] | None) -> None:
        self.initialize = initialize

    def __call__(self, worker: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        number, parent = os.getppid(), multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():  # killed before its number was read
            os._exit(0)
        threading.Thread(target=self._wait, args=(number,), daemon=True).start()
        if self.initialize is not None:
            self.initialize(worker)

    @staticmethod
    def _wait(parent: int) -> None:
        while os.getppid() == parent:
            received = signal.sigtimedwait([signal.SIGTERM], PARENT_CHECK_SECONDS)
            if received is not None and received.si_pid == parent:
                break
        os._exit(0)
