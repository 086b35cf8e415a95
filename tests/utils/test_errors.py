import argparse

import pytest

from ccop_mm.utils.errors import InputError, exit_on_input_error


def test_input_error_exits_with_one_line(capsys):
    @exit_on_input_error
    def main():
        raise InputError('images: no such folder')

    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == 'error: images: no such folder\n' and captured.out == ''


def test_traceback_of_data_loader_worker_is_removed(capsys):
    @exit_on_input_error
    def main():
        raise InputError(
            'Caught InputError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n'
            '  File "worker.py", line 1\nccop_mm.utils.errors.InputError: a.jpg: cannot be read\n'
        )

    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == 'error: a.jpg: cannot be read\n'


def test_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)


def test_other_errors_are_propagated():
    @exit_on_input_error
    def main():
        raise ValueError('a bug')

    with pytest.raises(ValueError, match='a bug'):
        main()


def test_result_and_metadata_are_preserved():
    @exit_on_input_error
    def main(first, *, second):
        """Subtracts two numbers."""
        return first - second

    assert main(3, second=1) == 2
    assert (main.__name__, main.__doc__) == ('main', 'Subtracts two numbers.')


def test_debug_option_keeps_the_traceback():
    @exit_on_input_error
    def run(args):
        raise InputError('images: no such folder')

    with pytest.raises(InputError, match='images'):
        run(argparse.Namespace(debug=True))
    with pytest.raises(SystemExit):
        run(argparse.Namespace(debug=False))
