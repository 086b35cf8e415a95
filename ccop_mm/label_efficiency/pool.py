"""Executes the runs of a study in processes, several at a time."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch

import ccop_mm
from ccop_mm.label_efficiency.runs import RunFolder

#: Module that trains and tests a run.
WORKER = 'ccop_mm.label_efficiency.worker'


class RunPool:
    """Starts the processes of runs and kills them on exit.

    Each process gets an equal part of the CPU cores, and of several GPUs one.

    Args:
        jobs (int): Number of runs at a time.
    """

    def __init__(self, jobs: int) -> None:
        self._executor = ThreadPoolExecutor(jobs)
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(jobs):
            self._slots.put(slot)
        self._jobs = jobs
        self._devices = _visible_devices()
        self._processes: set[subprocess.Popen] = set()
        self._closed = False

    def __enter__(self) -> 'RunPool':
        return self

    def __exit__(self, *_: object) -> None:
        """Kills the running processes: an unfinished run is repeated from its start."""
        self._closed = True
        for process in list(self._processes):
            with contextlib.suppress(ProcessLookupError):
                if os.name == 'posix':
                    os.killpg(process.pid, signal.SIGKILL)  # also the workers of its data loaders
                else:
                    process.kill()
        self._executor.shutdown(cancel_futures=True)

    def execute(self, folders: Sequence[RunFolder], finished: Callable[[RunFolder, int, float], None]) -> None:
        """Executes runs.

        Args:
            folders (Sequence[RunFolder]): Folders of the runs.
            finished (Callable): Called with the folder, the exit code and the seconds of each run, in the order in
                which they end.
        """
        futures = {self._executor.submit(self._execute, folder): folder for folder in folders}
        for future in as_completed(futures):
            code, seconds = future.result()
            finished(futures[future], code, seconds)

    def _execute(self, folder: RunFolder) -> tuple[int, float]:
        slot, started = self._slots.get(), time.monotonic()
        try:
            if self._closed:
                return 1, 0.0
            folder.prepare()
            command = [sys.executable, '-m', WORKER, str(folder.config), '--parent', str(os.getpid())]
            with open(folder.log, 'w', encoding='utf-8') as log:
                process = subprocess.Popen(
                    command, env=self._environment(slot), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
                self._processes.add(process)
                try:
                    return process.wait(), time.monotonic() - started
                finally:
                    self._processes.discard(process)
        finally:
            self._slots.put(slot)

    def _environment(self, slot: int) -> dict[str, str]:
        threads = max(1, (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 1) // self._jobs)
        # OpenMP threads that spin while they wait slow training down on busy cores (docs/performance.md).
        defaults = {'OMP_WAIT_POLICY': 'passive', 'GOMP_SPINCOUNT': '2000', 'OMP_NUM_THREADS': str(threads)}
        environment = {**defaults, **os.environ}
        paths = [str(Path(ccop_mm.__file__).parents[1]), os.environ.get('PYTHONPATH', '')]
        environment['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
        if len(self._devices) > 1:
            environment['CUDA_VISIBLE_DEVICES'] = self._devices[slot % len(self._devices)]
        return environment


def _visible_devices() -> list[str]:
    """Returns the GPUs that this process may use, as in ``CUDA_VISIBLE_DEVICES``."""
    chosen = os.environ.get('CUDA_VISIBLE_DEVICES')
    if chosen is not None:
        return [name for name in chosen.split(',') if name]
    return [str(number) for number in range(torch.cuda.device_count())]
