"""Checks of the detector of :mod:`small_detector`, and changes of its json files."""

from small_detector import detector_config

from ccop_mm.preflight.detector_data import check_test_data, check_training_data
from ccop_mm.preflight.findings import Report


def check_training(cfg):
    """Returns the findings about the training data of a config."""
    report = Report()
    check_training_data(cfg, report)
    return report


def check(root, **options):
    """Returns the findings about the training data of the small detector, with options as on a command line."""
    return check_training(detector_config(root, **options))


def check_test(root, **options):
    """The same for its test data."""
    report = Report()
    check_test_data(detector_config(root, **options), report)
    return report


def the_line(report, level):
    """Returns the only finding, which must have this level."""
    assert [finding.level for finding in report.findings] == [level], '\n'.join(map(str, report.findings))
    return str(report.findings[0])


def annotation(number=0, **values):
    """Returns a change of a json that sets values of one annotation."""
    return lambda content: content['annotations'][number].update(values)


def every(change):
    """Returns a change of a json that applies a function to every annotation."""
    return lambda content: [change(row) for row in content['annotations']]


def without(name, table='annotations', count=1):
    """Returns a change of a json that removes a value of the first entries of a list."""
    return lambda content: [row.pop(name) for row in content[table][:count]]
