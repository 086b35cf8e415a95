"""A step in a process of its own, for one that is to run under another memory allocator than the others'."""

import multiprocessing
import warnings

import step_meters as meters
import torch
from step_variants import VARIANTS


class StepElsewhere:
    """A step that this process measures but does not run: what :mod:`step_meters` finds there comes back.

    The process has the allocator that the environment asks for, by default the C library's as it is, whatever
    :func:`ccop_mm.engine.malloc.keep_freed_memory` has set in this one. It ends with this object.

    Args:
        variant (str): One of ``step_variants.VARIANTS``.
        setting (Setting): Sizes, precision and device.
        threads (int): Of the CPU.
    """

    def __init__(self, variant, setting, threads):
        self.setting, self._variant = setting, variant
        spawn = multiprocessing.get_context('spawn')
        self._pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs, variant, setting, threads), daemon=True)
        self.process.start()
        theirs.close()  # else this process would wait for ever for one that has died

    def measure(self, meter):
        """What a function of :mod:`step_meters` finds of the step."""
        try:
            self._pipe.send(meter)
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(f'the process of "{self._variant}" has ended; its own message is above') from error


def _serve(pipe, variant, setting, threads):
    warnings.filterwarnings('ignore', message='only .* images share batch statistics')
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    step = VARIANTS[variant](setting)
    while True:
        try:
            meter = pipe.recv()
        except EOFError:  # the process that measures has ended, or has dropped its object
            return
        pipe.send(meters.measure(step, meter))
