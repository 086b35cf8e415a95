"""Findings of the preflight checks, and the report that collects them."""

import enum
import logging
from dataclasses import dataclass, field
from typing import Any

from mmengine.logging import print_log

from ccop_mm.utils.errors import InputError


def format_value(value: Any, limit: int = 60) -> str:
    """Formats a value of a config for a finding, shortened to some characters."""
    text = ' '.join(repr(dict(value) if isinstance(value, dict) else value).split())
    return text if len(text) <= limit else f'{text[:limit]}...'


class Level(enum.Enum):
    """Severity of a finding."""

    #: The run would fail or give a wrong result; it is not started.
    ERROR = 'ERROR'
    #: The run may be wrong or wasteful; it is started.
    WARNING = 'WARNING'


@dataclass(frozen=True)
class Finding:
    """One problem, formatted as one line.

    Args:
        level (Level): Severity.
        where (str): File, config key or id that is affected.
        what (str): The problem, with the offending value.
        fix (str): What the user should do.
    """

    level: Level
    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return ' '.join(f'{self.level.value} {self.where}: {self.what}; {self.fix}'.split())


class PreflightError(InputError):
    """Raised if a preflight check found an error; the message has one line per error."""


@dataclass
class Report:
    """Findings of all checks, and a description of what was checked.

    Attributes:
        findings (list[Finding]): In the order of the checks.
        seen (list[str]): Parts of the last line, such as ``'2,881 images'``.
    """

    findings: list[Finding] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def error(self, where: str, what: str, fix: str) -> None:
        """Adds a problem that prevents the run."""
        self._add(Finding(Level.ERROR, where, what, fix))

    def warning(self, where: str, what: str, fix: str) -> None:
        """Adds a problem that does not prevent the run."""
        self._add(Finding(Level.WARNING, where, what, fix))

    def _add(self, finding: Finding) -> None:
        if finding not in self.findings:  # two settings may require the same of a file
            self.findings.append(finding)

    def saw(self, part: str) -> None:
        """Adds a part to the summary line."""
        self.seen.append(part)

    @property
    def errors(self) -> list[Finding]:
        """The findings of level ERROR."""
        return [finding for finding in self.findings if finding.level is Level.ERROR]

    @property
    def warnings(self) -> list[Finding]:
        """The findings of level WARNING."""
        return [finding for finding in self.findings if finding.level is Level.WARNING]

    @property
    def summary(self) -> str:
        """One line: what was checked, and the number of findings."""
        errors, warnings = len(self.errors), len(self.warnings)
        counts = f'{errors} error{"s" * (errors != 1)}, {warnings} warning{"s" * (warnings != 1)}'
        return f'checked: {", ".join(self.seen) or "the config"}; {counts}'

    def log(self) -> None:
        """Logs the warnings and the summary."""
        for finding in self.warnings:
            print_log(str(finding), 'current', logging.WARNING)
        print_log(self.summary, 'current')

    def raise_errors(self, details: bool = True) -> None:
        """Raises if there is an error.

        Args:
            details (bool): Whether the message has one line per error; False for all but one of several processes.

        Raises:
            PreflightError: There is a finding of level ERROR.
        """
        if not self.errors:
            return
        if not details:
            raise PreflightError('ERROR this process: not started; see the lines of the first process of this machine')
        raise PreflightError('\n'.join(str(finding) for finding in self.errors))
