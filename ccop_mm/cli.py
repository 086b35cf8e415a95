"""Console command ``ccop-mm``: runs the scripts of ``tools/`` that are installed with the package.

ccop-mm                       list the commands
ccop-mm pretrain --help       options of a command; the same as python tools/pretrain.py --help
"""

import ast
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

#: Where setup.py puts ``tools/``: copies in a wheel, a link in an editable installation.
TOOLS = Path(__file__).resolve().parent / '.mim' / 'tools'

#: Command -> file in ``tools/``, in the order of a project.
COMMANDS = {
    'propose': 'propose.py',
    'pretrain': 'pretrain.py',
    'check': 'check.py',
    'train': 'train.py',
    'dist-train': 'dist_train.sh',
    'slurm-train': 'slurm_train.sh',
    'test': 'test.py',
    'export': 'model_converters/export_checkpoint.py',
    'import': 'model_converters/import_checkpoint.py',
    'pointing': 'analysis_tools/pointing.py',
    'knn-recall': 'analysis_tools/knn_recall.py',
    'frozen-detector': 'analysis_tools/frozen_detector.py',
    'label-efficiency': 'analysis_tools/label_efficiency.py',
    'box-query': 'analysis_tools/box_query.py',
    'tsne': 'analysis_tools/tsne.py',
    'curriculum': 'analysis_tools/curriculum.py',
    'training-report': 'analysis_tools/training_report.py',
    'summarize': 'analysis_tools/summarize.py',
    'browse-proposals': 'misc/browse_proposals.py',
    'browse-views': 'misc/browse_views.py',
    'coco-subset': 'misc/coco_subset.py',
    'replay': 'misc/replay.py',
}

#: The command of :mod:`ccop_mm.doctor`, which is a module and not a file in ``tools/``.
DOCTOR = 'doctor'


def describe(file: Path) -> str:
    """Returns the first line of a Python script's docstring, or the comment below the usage of a shell script."""
    text = file.read_text(encoding='utf-8')
    if file.suffix == '.py':
        return (ast.get_docstring(ast.parse(text)) or '').partition('\n')[0]
    return text.partition('\n# Usage: ')[2].splitlines()[1].removeprefix('# ')


def format_commands() -> str:
    """Formats the list of commands with their descriptions."""
    lines = ['usage: ccop-mm COMMAND [options]', '']
    lines += [f'  {name:18s}{describe(TOOLS / file)}' for name, file in COMMANDS.items()]
    lines += [f'  {DOCTOR:18s}Reports what is installed, and what is wrong with the installation.', '']
    lines.append('ccop-mm COMMAND --help lists the options. Files of configs/ can be written as ccop_mm::NAME.')
    return '\n'.join(lines)


def command_line(name: str, arguments: Sequence[str]) -> list[str]:
    """Returns the program and its arguments for a command.

    Args:
        name (str): A key of :data:`COMMANDS`, or :data:`DOCTOR`.
        arguments (Sequence[str]): Options of the command.
    """
    if name == DOCTOR:
        return [sys.executable, '-m', 'ccop_mm.doctor', *arguments]
    file = TOOLS / COMMANDS[name]
    return ['bash' if file.suffix == '.sh' else sys.executable, str(file), *arguments]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; this process becomes that of the script, which gets its signals and returns its exit code."""
    name, *arguments = list(sys.argv[1:] if argv is None else argv) or ['--help']
    if not TOOLS.is_dir():
        _fail(f'{TOOLS} does not exist: install the package (pip install .), or run the scripts in tools/ directly')
    if name in ('-h', '--help', 'help'):
        print(format_commands())
        return
    if name == '--version':
        from ccop_mm.version import __version__

        print(__version__)
        return
    if name != DOCTOR and name not in COMMANDS:
        _fail(f'ccop-mm has no command {name!r}; commands: {", ".join([*COMMANDS, DOCTOR])}')
    words = command_line(name, arguments)
    os.environ.setdefault('PYTHON', sys.executable)  # of dist_train.sh and slurm_train.sh
    sys.stdout.flush()
    os.execvp(words[0], words)


def _fail(message: str) -> NoReturn:
    print(f'error: {message}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
    main()
