"""Trains and tests a run of a study in a process of its own: ``python -m ccop_mm.label_efficiency.worker CONFIG``."""

import argparse
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccop_mm.debug.finite_loss_hook import NonFiniteLossError
from ccop_mm.engine import launch
from ccop_mm.evaluation.frozen_detector_ap import METRICS, box_ap
from ccop_mm.label_efficiency.runs import METRICS as METRICS_FILE
from ccop_mm.label_efficiency.runs import RunFolder
from ccop_mm.utils.coco_json import read_json
from ccop_mm.utils.errors import InputError, exit_on_input_error
from ccop_mm.utils.file_io import atomic_write
from ccop_mm.weights.newest_checkpoint import find_newest

#: Interval in seconds at which a worker checks that the study is alive.
PARENT_CHECK_SECONDS = 1.0


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', type=Path, help='config of the run, in its folder')
    parser.add_argument('--parent', type=int, metavar='PID', help='process without which the run ends')
    parser.add_argument('--debug', action='store_true', help='print the traceback of an error in the input, too')
    return parser.parse_args(argv)


@exit_on_input_error
def run(args: argparse.Namespace) -> None:
    """Trains and tests a run, and writes its metrics."""
    if args.parent is not None:
        end_with_parent(args.parent)
    execute(RunFolder(args.config.parent, args.config.read_text(encoding='utf-8')))


def execute(folder: RunFolder) -> None:
    """Trains and tests a run, writes its metrics, and deletes its checkpoint.

    A run whose loss becomes NaN or infinite has an AP of 0: its learning rate is too high.

    Args:
        folder (RunFolder): Folder with the config of the run.
    """
    started = time.perf_counter()
    cfg = launch.load_config(folder.config)
    test_file = cfg.test_evaluator.ann_file
    diverged, trained = False, started
    metrics: dict[str, Any] = dict.fromkeys(METRICS, 0.0)
    try:
        launch.train(cfg)
        newest = find_newest(cfg.work_dir)
        if newest is None:
            raise InputError(f'the run saved no checkpoint in {cfg.work_dir}')
        trained = time.perf_counter()
        prefix = Path(cfg.work_dir, 'detections')
        launch.test(launch.load_config(folder.config), newest[0], prefix)
        results = Path(f'{prefix}.bbox.json')
        metrics = measure(read_json(test_file), json.loads(results.read_text(encoding='utf-8')))
    except NonFiniteLossError as error:
        print(f'diverged: {error}', flush=True)
        diverged, trained = True, time.perf_counter()
    seconds = dict(training=trained - started, test=time.perf_counter() - trained)
    folder.delete_large_files()
    with atomic_write(folder.path / METRICS_FILE, 'w') as file:
        json.dump(dict(metrics=metrics, diverged=diverged, seconds=seconds, config=folder.digest), file, indent=1)


def measure(content: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Measures AP, AP50 and AP75, with several classes also of each.

    Args:
        content (Mapping): COCO json.
        detections (Sequence[Mapping]): Detections in COCO's format of results.

    Returns:
        dict: AP, AP50 and AP75 in [0, 1], and ``per_class``, which maps the name of each class with annotations to the
        same.
    """
    metrics: dict[str, Any] = box_ap(content, detections)
    names = {category['id']: category['name'] for category in content['categories']}
    if len(names) == 1:
        return metrics
    per_class = {}
    for category_id, name in names.items():
        annotations = [entry for entry in content['annotations'] if entry['category_id'] == category_id]
        with contextlib.suppress(InputError):  # no annotations
            found = [entry for entry in detections if entry['category_id'] == category_id]
            per_class[name] = box_ap({**content, 'annotations': annotations}, found)
    return {**metrics, 'per_class': per_class}


def end_with_parent(parent: int) -> None:
    """Starts a thread that kills the process group of this process when its parent has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_SECONDS)
        if os.getpgid(0) == os.getpid():  # also the workers of the data loaders
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == '__main__':
    run(parse_args())
