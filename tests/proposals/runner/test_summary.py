"""Formatted statistics of a run."""

from types import SimpleNamespace

from ccop_mm.proposals.runner.summary import Summary


def record(name, num_boxes, counts, cpu):
    return SimpleNamespace(file_name=name, boxes=[None] * num_boxes, counts=counts, cpu=cpu)


def test_means_are_over_the_usable_images():
    records = [record('b.jpg', 4, (100, 50, 10), (0.2, 0.1)), record('a.jpg', 0, (20, 10, 0), (0.4, 0.1))]
    summary = Summary('x.npz', records, {'d.jpg': 'empty', 'c.jpg': 'truncated'}, resumed=0, seconds=12.34)
    assert summary.empty == ['a.jpg']
    assert str(summary).splitlines() == [
        'images             4',
        '  skipped          2',
        '    c.jpg: truncated',
        '    d.jpg: empty',
        '  without boxes    1',
        '    a.jpg',
        'boxes per image    2.0 (60.0 candidates, 30.0 after filtering, 5.0 after merging)',
        'CPU s per image    0.400 (selection 25.0%)',
        'seconds            12.3',
        'file               x.npz',
    ]


def test_no_usable_images_and_long_lists():
    skipped = {f'{number:02d}.jpg': 'empty' for number in range(13)}
    lines = str(Summary('x.npz', [], skipped, resumed=5, seconds=0.5)).splitlines()
    assert [line for line in lines if line.startswith('    ')][-2:] == ['    09.jpg: empty', '    ... and 3 more']
    assert not any('per image' in line for line in lines)
    assert lines[-2] == 'seconds            0.5 (5 images were finished before)'


def test_low_depth_and_other_files_are_named():
    records = [record('b.png', 4, (100, 50, 10), (0.2, 0.1))]
    low_depth, passed_over = {'b.png': 12}, {'.gif': 2, '.heic': 1}
    lines = str(Summary('x.npz', records, {}, 0, 1.0, low_depth, passed_over)).splitlines()
    (warning,) = (line for line in lines if 'WARNING' in line)
    assert warning.split()[:2] == ['WARNING', '1']
    assert lines[lines.index(warning) + 1] == '    b.png: 12 bits'
    (line,) = (line for line in lines if line.startswith('files passed over'))
    assert ' 3: 2 .gif, 1 .heic ' in line
