"""Measures time, stages, memory and FLOPs of a training step on a GPU or a CPU."""

import contextlib
import gc
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault('KINETO_LOG_LEVEL', '5')  # silences the profiler

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def synchronize(device: str) -> None:
    """Waits until the device has finished all work."""
    if device != 'cpu':
        torch.cuda.synchronize()


def release_memory(device: str) -> None:
    """Collects garbage and empties the allocator's cache."""
    gc.collect()
    if device != 'cpu':
        torch.cuda.empty_cache()


def seconds(step: Any) -> tuple[float, float]:
    """Runs one step; returns its wall time and its CPU time (all threads of this process) in seconds."""
    synchronize(step.setting.device)
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    synchronize(step.setting.device)
    return time.perf_counter() - wall, time.process_time() - cpu


def peak_bytes(step: Any) -> int:
    """Runs one step; returns the peak of its temporary memory, without what remains between steps (``Step.resident``).

    On a GPU the allocator reports it. On a CPU it comes from the profiler's record of all allocations by torch;
    internal buffers of kernel libraries are not included.
    """
    if step.setting.device != 'cpu':
        synchronize(step.setting.device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        synchronize(step.setting.device)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == '[memory]']
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


def flop(step: Any) -> int:
    """Counts the FLOPs of matrix products and convolutions in one step; a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def resident_bytes(step: Any) -> int:
    """Returns the bytes that remain allocated between steps (``Step.resident``)."""
    return step.resident


def measure(step: Any, meter: str) -> Any:
    """Applies the function of this module named ``meter`` to a step, in the process that runs the step."""
    return step.measure(meter) if hasattr(step, 'measure') else globals()[meter](step)


class Clock:
    """Accumulates the time of the stages of a step.

    Args:
        step (Step): Step to measure; its ``clock`` is set. The modules of a CCOP model get hooks, and its methods are
            wrapped, to record start and end of a stage.
    """

    def __init__(self, step: Any) -> None:
        self._device, self._spans, self._started = step.setting.device, defaultdict(list), {}
        step.clock, model = self, step.module
        self._handles: list = []
        if not hasattr(model, 'encoder_k'):
            return
        for owner, prefix in ((model, 'query'), (model.encoder_k, 'key')):
            for name, stage in (('backbone', 'images'), ('neck', 'images'), ('object_projector', 'MLP')):
                self._hook(getattr(owner, name), lambda stage=stage, prefix=prefix: f'{prefix} {stage}')
        for name in ('image_head', 'object_head', 'intra_loss'):
            self._hook(getattr(model, name), lambda: 'losses')
        self._hook(model.object_pool, lambda: f'{"query" if torch.is_grad_enabled() else "key"} RoIAlign')
        self._wrap(model.encoder_k, 'update', 'EMA')
        self._wrap(model.box_jitter, 'jitter', 'jitter')
        for queue in (model.image_queue, model.object_queue):
            self._wrap(queue, 'enqueue', 'queues')

    def _hook(self, module: nn.Module, label: Callable[[], str]) -> None:
        """Measures the forward pass of a module."""

        def start(module: nn.Module, *_: Any) -> None:
            self._started[module] = self._now()

        def stop(module: nn.Module, *_: Any) -> None:
            self._spans[label()].append((self._started.pop(module), self._now()))

        self._handles += [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]

    def _wrap(self, owner: Any, name: str, label: str) -> None:
        """Measures a method of an object."""
        method = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(label):
                return method(*args, **kwargs)

        setattr(owner, name, timed)

    @contextlib.contextmanager
    def stage(self, label: str) -> Iterator[None]:
        """Adds the time of a block to a stage."""
        start = self._now()
        yield
        self._spans[label].append((start, self._now()))

    def _now(self) -> Any:
        if self._device == 'cpu':
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> dict[str, float]:
        """Returns the seconds per stage since the last call."""
        synchronize(self._device)
        spans, self._spans = self._spans, defaultdict(list)
        if self._device == 'cpu':
            return {label: sum(stop - start for start, stop in pairs) for label, pairs in spans.items()}
        return {label: sum(a.elapsed_time(b) for a, b in pairs) / 1000 for label, pairs in spans.items()}
