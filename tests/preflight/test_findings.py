import pytest

from ccop_mm.preflight.findings import Finding, Level, PreflightError, Report
from ccop_mm.utils.errors import InputError


def test_finding_is_one_line():
    finding = Finding(Level.ERROR, 'train.json', 'class\n"dgo" is unknown', 'write "dog"')
    assert str(finding) == 'ERROR train.json: class "dgo" is unknown; write "dog"'


def test_errors_are_raised_together_and_warnings_are_not():
    report = Report()
    report.warning('a', 'odd', 'check it')
    report.raise_errors()
    report.error('b', 'wrong', 'change it')
    report.error('c', 'missing', 'add it')
    with pytest.raises(PreflightError) as caught:
        report.raise_errors()
    assert str(caught.value).splitlines() == ['ERROR b: wrong; change it', 'ERROR c: missing; add it']
    assert isinstance(caught.value, InputError)
    assert [str(finding) for finding in report.warnings] == ['WARNING a: odd; check it']


def test_same_finding_is_added_once():
    report = Report()
    for level in ('error', 'warning', 'error'):
        getattr(report, level)('b', 'wrong', 'change it')
    assert [finding.level for finding in report.findings] == [Level.ERROR, Level.WARNING]


def test_summary_counts_findings():
    report = Report()
    report.saw('24 images')
    report.saw('6 classes')
    report.error('b', 'wrong', 'change it')
    assert report.summary == 'checked: 24 images, 6 classes; 1 error, 0 warnings'
