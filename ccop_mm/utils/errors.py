"""Errors that are reported to the user in one line, without a traceback."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec('P')
R = TypeVar('R')


class InputError(ValueError):
    """Raised for an invalid file or command line.

    The first line of the message states what is wrong, where (file, id), and what to do; lists may follow, one item per
    line. :func:`exit_on_input_error` prints it without a traceback.
    """


def exit_on_input_error(main: Callable[P, R]) -> Callable[P, R]:
    """Decorates the main function of a tool: an :class:`InputError` is printed to stderr and ends it with exit code 2.

    Every other exception is a bug and keeps its traceback. An :class:`InputError` keeps it, too, if an argument of
    ``main`` has a true attribute ``debug`` (option ``--debug`` of a tool).
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except InputError as error:
            if any(getattr(argument, 'debug', False) for argument in args):
                raise
            # A data loader worker prepends its traceback to the message of the exception.
            message = str(error)
            if message.startswith('Caught InputError in '):
                message = message.rpartition('InputError: ')[2].strip()
            # The findings of a preflight check start with their level.
            print(message if message.startswith('ERROR ') else f'error: {message}', file=sys.stderr)
            sys.exit(2)

    return wrapped
