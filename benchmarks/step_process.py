"""A step in a process of its own, for one that is to run under another memory allocator than the others'."""

import multiprocessing

import step_meters as meters


class StepElsewhere:
    """A step that this process measures but does not run: what :mod:`step_meters` finds there comes back.

    The process has the C library's allocator as it is by default, whatever this one has set.

    Args:
        variant (str): One of ``step_variants.VARIANTS``.
        setting (Setting): Sizes, precision and device.
        threads (int): Of the CPU.
    """

    def __init__(self, variant, setting, threads):
        self.setting = setting
        self._pipe, theirs = multiprocessing.get_context('spawn').Pipe()
        process = multiprocessing.get_context('spawn').Process(
            target=_serve, args=(theirs, variant, setting, threads), daemon=True
        )
        process.start()
        theirs.close()  # so that a process that died ends in EOFError, not in waiting

    def measure(self, meter):
        """What a function of :mod:`step_meters` finds of the step."""
        self._pipe.send(meter)
        return self._pipe.recv()


def _serve(pipe, variant, setting, threads):
    import warnings

    import torch
    from step_variants import VARIANTS

    warnings.filterwarnings('ignore', message='only .* images share batch statistics')
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    step = VARIANTS[variant](setting)
    while True:
        try:
            meter = pipe.recv()
        except EOFError:  # the process that measures has ended
            return
        pipe.send(getattr(meters, meter)(step))
