"""From photos to a proposals file, in several processes or on several machines, going on after a kill."""

import functools
import os
import sys
import time
from pathlib import Path

import cv2
from tqdm import tqdm

from ccop_mm.errors import InputError
from ccop_mm.proposals.dask_pool import map_on_dask
from ccop_mm.proposals.journal import Journal
from ccop_mm.proposals.pool import map_unordered
from ccop_mm.proposals.rules import Rules
from ccop_mm.proposals.shards import Shard
from ccop_mm.proposals.store import ProposalStore
from ccop_mm.proposals.summary import Summary
from ccop_mm.proposals.true_boxes import annotate
from ccop_mm.proposals.work import Record, num_bytes, process
from ccop_mm.version import __version__


def run(photos, out, *, workers=None, scheduler=None, shard=None, annotations=None, progress=True, **rules):
    """Makes the proposals file of a list of photos.

    Finished photos are kept in ``OUT.partial`` until the file is written: the same call, after a kill, goes on from
    there. The file is the same, byte for byte, with any number of kills, workers and machines.

    Args:
        photos (list[Photo]): From :func:`~ccop_mm.proposals.list_photos`.
        out (str | Path): The file to write; an older one is replaced at the end.
        workers (int | None): Processes; 1 searches in this process. By default one for each core.
        scheduler (str | None): Address of a Dask scheduler whose workers search instead. They see the photos under the
            same paths.
        shard (str | None): ``'i/n'``: the i-th of n parts of the photos, to be put together by
            :func:`~ccop_mm.proposals.shards.merge`.
        annotations (str | Path | None): COCO json of the true boxes; the method ``'ground-truth'`` needs it.
        progress (bool): Show a bar on stderr.
        **rules: Fields of :class:`~ccop_mm.proposals.rules.Rules`.

    Returns:
        Summary: What was done.

    Raises:
        InputError: If a rule is out of range, ``out`` cannot be written, a worker dies, the scheduler is lost, or
            ``OUT.partial`` is in use or was left by other rules or other photos.
    """
    started = time.perf_counter()
    rules, out = Rules.of(**rules), Path(out)
    rules.require()
    if out.is_dir():
        raise InputError(f'{out} is a folder: name the file to write')
    metadata = {'ccop_mm': __version__, 'opencv': cv2.__version__, **rules.to_json()}
    if (rules.method == 'ground-truth') != (annotations is not None):
        raise InputError('annotations of true boxes go with the method ground-truth, and it needs them')
    if annotations is not None:
        photos, metadata['annotations'] = annotate(photos, annotations)
    if shard is not None:
        part = Shard.parse(shard)
        metadata['shard'] = part.describe(photos)
        photos = part.of(photos)
    journal = Journal(f'{out}.partial', metadata, Record.from_json)
    records = None
    try:
        records = _resume(journal, photos)
        resumed = len(records)
        todo = [photo for photo in photos if photo.image_id not in records]
        # The longest searches first, so that no worker begins one when the others have finished.
        todo.sort(key=num_bytes, reverse=True)
        work = functools.partial(process, rules=rules)
        if scheduler is None:
            results = map_unordered(work, todo, _num_cores() if workers is None else workers)
        else:
            results = map_on_dask(work, todo, scheduler)
        with _bar(len(photos), resumed, progress) as bar:
            for record in results:
                journal.append(record.to_json())
                records[record.image_id] = record
                bar.update()
        good = [record for record in records.values() if not record.reason]
        skipped = {record.file_name: record.reason for record in records.values() if record.reason}
        entries = [(record.image_id, record.file_name, record.size, record.boxes) for record in good]
        digests = {record.image_id: record.digest for record in good}
        ProposalStore(entries, skipped, metadata, digests).save(out)
        journal.remove()
    finally:
        if records == {}:  # nothing was done, such as for want of a scheduler
            journal.remove()
        journal.close()
    return Summary(out, good, skipped, resumed, time.perf_counter() - started)


def _resume(journal, photos):
    """The journal's records by image id, without those of photos that have changed since."""
    listed = {photo.image_id: photo for photo in photos}
    records = {}
    for record in journal.records:
        photo = listed.get(record.image_id)
        if photo is None or photo.file_name != record.file_name:
            raise InputError(
                f'{journal.path} holds {record.file_name}, which is not among these photos: '
                'repeat that command, or delete the file to begin anew'
            )
        if record.num_bytes == num_bytes(photo):
            records[record.image_id] = record
    return records


def _num_cores():
    """Cores that this process may use, which in a container or a job may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def _bar(total, done, progress):
    # A log file gets one line a minute, a terminal ten a second.
    interval = 0.1 if sys.stderr.isatty() else 60
    # Images a second, also below one; tqdm would turn that round.
    shown = '{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]'
    return tqdm(
        total=total,
        initial=done,
        unit=' images',
        desc='propose',
        mininterval=interval,
        bar_format=shown,
        disable=not progress,
    )
