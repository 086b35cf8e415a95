"""Time, stages, memory and arithmetic of a step, on a GPU and on the CPU."""

import contextlib
import gc
import os
import time
from collections import defaultdict

os.environ.setdefault('KINETO_LOG_LEVEL', '5')  # the profiler's own messages

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def synchronize(device):
    """Waits for the device."""
    if device != 'cpu':
        torch.cuda.synchronize()


def free(device):
    """Gives back what earlier steps held."""
    gc.collect()
    if device != 'cpu':
        torch.cuda.empty_cache()


def seconds(step):
    """Wall seconds and CPU seconds (all threads of this process) of one step."""
    synchronize(step.setting.device)
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    synchronize(step.setting.device)
    return time.perf_counter() - wall, time.process_time() - cpu


def peak_bytes(step):
    """The most bytes that a step holds at once beyond what stays between steps (:attr:`Step.resident`).

    On a GPU by the allocator's own count. On the CPU by the profiler's record of every allocation that torch makes;
    what the kernels' libraries allocate for themselves is not in it.
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
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def flop(step):
    """Floating-point operations of the matrix products and convolutions of a step (a multiply-add counts as two)."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def resident_bytes(step):
    """Bytes that stay from step to step (:attr:`Step.resident`)."""
    return step.resident


def measure(step, meter):
    """What a function of this module, named by ``meter``, finds of a step, wherever that runs."""
    return step.measure(meter) if hasattr(step, 'measure') else globals()[meter](step)


class Clock:
    """Adds up the time of a step's stages.

    Args:
        step (Step): Gets the clock; a CCOP's modules get hooks that start and stop it.
    """

    def __init__(self, step):
        self._device, self._spans, self._open = step.setting.device, defaultdict(list), {}
        step.clock, model = self, step.module
        self._handles = []
        if not hasattr(model, 'encoder_k'):
            return
        for owner, prefix in ((model, 'query'), (getattr(model, 'encoder_k', None), 'key')):
            for name, stage in (('backbone', 'images'), ('neck', 'images'), ('object_projector', 'MLP')):
                if isinstance(getattr(owner, name, None), nn.Module):
                    self._hook(getattr(owner, name), lambda stage=stage, prefix=prefix: f'{prefix} {stage}')
        for name, stage in (('image_head', 'losses'), ('object_head', 'losses'), ('intra_loss', 'losses')):
            self._hook(getattr(model, name), lambda stage=stage: stage)
        self._hook(model.object_pool, lambda: f'{"query" if torch.is_grad_enabled() else "key"} RoIAlign')
        self._wrap(model.encoder_k, 'update', 'EMA')
        self._wrap(model.box_jitter, 'jitter', 'jitter')
        for queue in (model.image_queue, model.object_queue):
            self._wrap(queue, 'enqueue', 'queues')

    def _hook(self, module, label):
        def start(module, *_):
            self._open[module] = self._now()

        def stop(module, *_):
            self._spans[label()].append((self._open.pop(module), self._now()))

        self._handles += [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]

    def _wrap(self, owner, name, label):
        inner = getattr(owner, name)

        def timed(*args, **kwargs):
            with self.stage(label):
                return inner(*args, **kwargs)

        setattr(owner, name, timed)

    @contextlib.contextmanager
    def stage(self, label):
        """Counts the time of a block."""
        start = self._now()
        yield
        self._spans[label].append((start, self._now()))

    def _now(self):
        if self._device == 'cpu':
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self):
        """Seconds by stage since the last reading."""
        synchronize(self._device)
        spans, self._spans = self._spans, defaultdict(list)
        if self._device == 'cpu':
            return {label: sum(stop - start for start, stop in pairs) for label, pairs in spans.items()}
        return {label: sum(a.elapsed_time(b) for a, b in pairs) / 1000 for label, pairs in spans.items()}
