"""The checkpoint of a run, which all checks share because reading a large file takes seconds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccop_mm.preflight.findings import Report
from ccop_mm.utils.errors import InputError
from ccop_mm.weights.checkpoint_file import read_run_checkpoint


@dataclass(frozen=True, eq=False)
class RunCheckpoint:
    """Content of a checkpoint.

    Attributes:
        path (str): File or URL.
        state (Mapping): State dict with the keys that the model receives.
        content (Mapping): Everything in the file.
    """

    path: str
    state: Mapping[str, Any]
    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the file."""
        return Path(self.path).name

    @property
    def meta(self) -> Mapping[str, Any]:
        """Metadata that mmengine stores; empty if there are none."""
        meta = self.content.get('meta')
        return meta if isinstance(meta, Mapping) else {}


def read_checkpoint(path: str, report: Report) -> RunCheckpoint | None:
    """Reads a checkpoint like the run will.

    Args:
        path (str): File or URL.
        report (Report): Receives an error if the file cannot be read.

    Returns:
        RunCheckpoint | None: None after an error, and for the folder of a sharded checkpoint, which is not checked.
    """
    if Path(path).is_dir():
        return None
    try:
        state, content = read_run_checkpoint(path)
    except InputError as error:
        report.error(path, str(error).removeprefix(f'{path} '), 'use the checkpoint of a run')
        return None
    return RunCheckpoint(path, state, content)
