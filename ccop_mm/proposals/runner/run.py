"""Generation of a proposals file from images, in processes or on a cluster, with resumption after an interruption."""

import functools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from ccop_mm.proposals.candidates import require_engine
from ccop_mm.proposals.ground_truth import annotate
from ccop_mm.proposals.image_record import ImageRecord, file_size, propose_image
from ccop_mm.proposals.runner.dask import map_on_dask
from ccop_mm.proposals.runner.finished_file import check_replaceable
from ccop_mm.proposals.runner.journal import Journal
from ccop_mm.proposals.runner.local import map_unordered
from ccop_mm.proposals.runner.shards import Shard
from ccop_mm.proposals.runner.summary import Summary
from ccop_mm.proposals.settings import ProposalSettings
from ccop_mm.proposals.store import ProposalStore
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import ImageFile
from ccop_mm.version import __version__

#: A 16-bit image whose values need at most this number of bits is named in the summary.
LOW_BITS = 14


def generate_proposals(
    images: Sequence[ImageFile],
    out: str | Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    shard: str | None = None,
    annotations: str | Path | None = None,
    progress: bool = True,
    overwrite: bool = False,
    **settings: Any,
) -> Summary:
    """Generates the proposals file of a list of images.

    Finished images are stored in ``OUT.partial`` until the file is written; after an interruption, the same call
    resumes from there. The file is byte-identical for any number of interruptions, workers and machines.

    Args:
        images (Sequence[ImageFile]): Result of :func:`~ccop_mm.proposals.list_images`.
        out (str | Path): File to write. An existing file of the same images and settings is replaced once the new one
            is complete.
        workers (int | None): Number of processes; 1 runs in the calling process. Defaults to the number of cores.
        scheduler (str | None): Address of a Dask scheduler, to run on its workers instead. The images must have the
            same paths there.
        shard (str | None): ``'i/n'``: process only the i-th of n parts of the images, for
            :func:`~ccop_mm.proposals.runner.shards.merge`.
        annotations (str | Path | None): COCO json with ground-truth boxes, required by the method ``'ground-truth'``.
        progress (bool): Whether to show a progress bar on stderr.
        overwrite (bool): Whether a file of other images or settings may be replaced, too.
        **settings: Fields of :class:`~ccop_mm.proposals.settings.ProposalSettings`.

    Returns:
        Summary: Statistics of the run.

    Raises:
        InputError: If a setting is invalid, ``out`` cannot be written, a worker dies, the scheduler is lost, or ``out``
            or ``OUT.partial`` is in use or belongs to other settings or images.
    """
    started = time.perf_counter()
    out = Path(out)
    try:
        proposal_settings = ProposalSettings.from_kwargs(**settings)
    except ValueError as error:
        raise InputError(str(error)) from None
    if proposal_settings.method == 'selective-search':
        require_engine(proposal_settings.mode, proposal_settings.engine)
    if out.is_dir():
        raise InputError(f'{out} is a folder: pass the file to write')
    metadata: dict[str, Any] = {'ccop_mm': __version__, 'opencv': cv2.__version__, **proposal_settings.to_json()}
    if (proposal_settings.method == 'ground-truth') != (annotations is not None):
        raise InputError(
            f'the method ground-truth requires annotations and no other method accepts them, got the method '
            f'{proposal_settings.method} and annotations {annotations}'
        )
    passed_over = getattr(images, 'passed_over', {})
    if annotations is not None:
        images, metadata['annotations'] = annotate(images, annotations)
    if shard is not None:
        part = Shard.parse(shard)
        metadata['shard'] = part.to_json(images)
        images = part.select(images)
    check_replaceable(out, (image.file_name for image in images), metadata, overwrite)
    journal = Journal(f'{out}.partial', metadata, ImageRecord.from_json)
    records = None
    try:
        records = _records_to_resume(journal, images)
        num_resumed = len(records)
        todo = [image for image in images if image.image_id not in records]
        # Largest files first, so that no worker starts a long search when the others have finished.
        todo.sort(key=file_size, reverse=True)
        results: Iterator[ImageRecord]
        process = functools.partial(propose_image, settings=proposal_settings)
        if scheduler is None:
            results = map_unordered(process, todo, _num_cores() if workers is None else workers)
        else:
            results = map_on_dask(process, todo, scheduler, on_killed=_killed_record)
        with _progress_bar(len(images), num_resumed, progress) as bar:
            for record in results:
                journal.append(record.to_json())
                records[record.image_id] = record
                bar.update()
        summary = _write_store(records, metadata, out, num_resumed, started, passed_over)
        journal.remove()
    finally:
        if records == {}:  # nothing was processed, for example because the scheduler was not reachable
            journal.remove()
        journal.close()
    return summary


def _records_to_resume(journal: Journal, images: Sequence[ImageFile]) -> dict[int, ImageRecord]:
    """Returns the records of a journal by image id, without those of images that have changed since."""
    image_by_id = {image.image_id: image for image in images}
    records = {}
    for record in journal.records:
        image = image_by_id.get(record.image_id)
        if image is None or image.file_name != record.file_name:
            raise InputError(
                f'{journal.path} contains {record.file_name}, which is not among the images: '
                'repeat that command to finish it, or write to another file'
            )
        if record.num_bytes == file_size(image):
            records[record.image_id] = record
    return records


def _killed_record(image: ImageFile) -> ImageRecord:
    """Returns the record of an image that kills the workers that process it."""
    reason = 'workers died while processing it, possibly because memory ran out'
    return ImageRecord(image.image_id, image.file_name, file_size(image), reason=reason)


def _write_store(
    records: dict[int, ImageRecord],
    metadata: dict[str, Any],
    out: Path,
    num_resumed: int,
    started: float,
    passed_over: Mapping[str, int],
) -> Summary:
    """Writes the proposals file of all records and returns the statistics of the run."""
    usable, entries, skipped = [], [], {}
    for record in records.values():
        if record.boxes is None:
            skipped[record.file_name] = record.reason
        else:
            usable.append(record)
            entries.append((record.image_id, record.file_name, record.size, record.boxes))
    digests = {record.image_id: record.digest for record in usable}
    ProposalStore(entries, skipped, metadata, digests).save(out)
    low_depth = {record.file_name: record.value_bits for record in usable if 0 < record.value_bits <= LOW_BITS}
    seconds = time.perf_counter() - started
    return Summary(out, usable, skipped, num_resumed, seconds, low_depth, passed_over)


def _num_cores() -> int:
    """Returns the number of cores this process may use, which can be lower in a container or a cluster job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _progress_bar(total: int, done: int, enabled: bool) -> tqdm:
    # One line a minute in a log file, ten updates a second in a terminal.
    interval = 0.1 if sys.stderr.isatty() else 60
    # rate_noinv_fmt: always images per second; below one, tqdm's default switches to seconds per image.
    bar_format = '{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]'
    return tqdm(
        total=total,
        initial=done,
        unit=' images',
        desc='propose',
        mininterval=interval,
        bar_format=bar_format,
        disable=not enabled,
    )
