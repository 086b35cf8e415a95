"""A training step that runs in its own process, to measure it with another memory allocator."""

import multiprocessing
import warnings
from multiprocessing.connection import Connection
from typing import Any

import step_meters as meters
import torch
from step_variants import VARIANTS, Setting


class SubprocessStep:
    """Runs and measures a step in a new process, which ends with this object.

    The process uses the memory allocator that the environment asks for, by default that of the C library, even if
    :func:`ccop_mm.engine.malloc.keep_freed_memory` was called in this process.

    Args:
        variant (str): Key of ``step_variants.VARIANTS``.
        setting (Setting): Sizes, precision and device.
        threads (int): Number of CPU threads.
    """

    def __init__(self, variant: str, setting: Setting, threads: int) -> None:
        self.setting, self._variant = setting, variant
        spawn = multiprocessing.get_context('spawn')
        self._pipe, child_pipe = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(child_pipe, variant, setting, threads), daemon=True)
        self.process.start()
        child_pipe.close()  # so that reading from a process that has died raises EOFError

    def measure(self, meter: str) -> Any:
        """Calls a function of :mod:`step_meters` in the process; returns its result."""
        try:
            self._pipe.send(meter)
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(
                f'the process of step "{self._variant}" has died; see its error message above'
            ) from error


def _serve(pipe: Connection, variant: str, setting: Setting, threads: int) -> None:
    warnings.filterwarnings('ignore', message='only .* images share batch statistics')
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    step = VARIANTS[variant](setting)
    while True:
        try:
            meter = pipe.recv()
        except EOFError:  # the parent process has ended or has deleted its SubprocessStep
            return
        pipe.send(meters.measure(step, meter))
