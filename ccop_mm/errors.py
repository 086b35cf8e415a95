"""What a user sees when the input is at fault: one clear line."""

import functools
import sys


class InputError(Exception):
    """The input is at fault, not the program.

    The message is one line: what is wrong, where (file, id), what to do. :func:`exit_on_input_error` prints it without
    a traceback.
    """


def exit_on_input_error(main):
    """Decorates a tool's ``main``: an :class:`InputError` becomes one line on stderr and exit code 2.

    Every other exception keeps its traceback, for it is a fault of the program.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except InputError as error:
            # A data loader's worker wraps the message of its exception in a traceback; the message comes last.
            message = str(error)
            if message.startswith('Caught InputError in '):
                message = message.rpartition('InputError: ')[2].strip()
            print(f'error: {message}', file=sys.stderr)
            sys.exit(2)

    return wrapped
