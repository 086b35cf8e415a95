"""InputError at the command line."""

import pytest

from ccop_mm.errors import InputError, exit_on_input_error


def test_input_error_becomes_one_line(capsys):
    @exit_on_input_error
    def main():
        raise InputError('photos: no such folder')

    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == 'error: photos: no such folder\n' and captured.out == ''


def test_other_errors_keep_their_traceback():
    @exit_on_input_error
    def main():
        raise ValueError('a fault of the program')

    with pytest.raises(ValueError, match='a fault of the program'):
        main()


def test_result_and_name_pass_through():
    @exit_on_input_error
    def main(first, *, second):
        """What it does."""
        return first - second

    assert main(3, second=1) == 2
    assert (main.__name__, main.__doc__) == ('main', 'What it does.')
