from types import SimpleNamespace

from ccop_mm.proposals.summary import Summary


def record(name, num_boxes, counts, cpu):
    return SimpleNamespace(file_name=name, boxes=[None] * num_boxes, counts=counts, cpu=cpu)


def test_means_are_of_the_photos_searched():
    records = [record('b.jpg', 4, (100, 50, 10), (0.2, 0.1)), record('a.jpg', 0, (20, 10, 0), (0.4, 0.1))]
    summary = Summary('x.npz', records, {'d.jpg': 'empty', 'c.jpg': 'cut off'}, resumed=0, seconds=12.34)
    assert summary.empty == ['a.jpg']
    assert str(summary).splitlines() == [
        'photos             4',
        '  skipped          2',
        '    c.jpg: cut off',
        '    d.jpg: empty',
        '  without any box  1',
        '    a.jpg',
        'boxes a photo      2.0 (searched 60.0, size and aspect 30.0, merged 5.0)',
        'CPU s a photo      0.400 (selection 25.0%)',
        'seconds            12.3',
        'file               x.npz',
    ]


def test_nothing_searched_has_no_means_and_long_lists_are_cut():
    skipped = {f'{number:02d}.jpg': 'empty' for number in range(13)}
    lines = str(Summary('x.npz', [], skipped, resumed=5, seconds=0.5)).splitlines()
    assert [line for line in lines if line.startswith('    ')][-2:] == ['    09.jpg: empty', '    ... and 3 more']
    assert not any('a photo' in line for line in lines)
    assert lines[-2] == 'seconds            0.5 (5 photos were finished before)'
