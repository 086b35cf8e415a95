import pytest

from ccop_mm.utils.text import format_duration, format_truncated, single_line


@pytest.mark.parametrize(
    'items, expected',
    [
        ([], ''),
        (['a'], 'a'),
        (['a', 'b', 'c', 'd'], 'a, b, c, d'),
        (['a', 'b', 'c', 'd', 'e'], 'a, b, c, d and 1 more'),
        (range(10), '0, 1, 2, 3 and 6 more'),
    ],
)
def test_format_truncated(items, expected):
    assert format_truncated(items) == expected


def test_format_truncated_with_limit_and_separator():
    assert format_truncated('abc', limit=2, separator='; ') == 'a; b and 1 more'


@pytest.mark.parametrize(
    'error, expected',
    [
        (ValueError('one line'), 'one line'),
        (ValueError('\n  first  \nsecond'), 'first'),
        (ValueError(''), 'ValueError'),
        (KeyError('meta'), "'meta'"),
        (AssertionError(), 'AssertionError'),
    ],
)
def test_single_line(error, expected):
    assert single_line(error) == expected


@pytest.mark.parametrize(
    'seconds, expected',
    [
        (0.2, '0 s'),
        (59.4, '59 s'),
        (59.6, '1 min'),
        (3599, '1 h 0 min'),
        (11_100, '3 h 5 min'),
        (86_399, '1 d 0 h'),
        (198_000, '2 d 7 h'),
    ],
)
def test_format_duration(seconds, expected):
    assert format_duration(seconds) == expected
