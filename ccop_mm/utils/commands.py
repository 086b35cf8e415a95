"""The project's tools as commands: how the user starts them, and running them with a log file and a progress line."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ccop_mm.utils.errors import InputError

#: A line of mmengine's text log: epoch (not in test loops), iteration, number of iterations, loss (only in training).
PROGRESS = re.compile(r'Epoch\(\w+\)\s+(?:\[(\d+)\])?\[\s*(\d+)/(\d+)\](?:.*?\bloss: ([\d.]+))?')


def console_command(script: str | Path) -> list[str]:
    """Returns the words that run a script: ``ccop-mm train`` if it is installed with the package, or ``python FILE``.

    Args:
        script (str | Path): A script of ``tools/``, such as ``sys.argv[0]``. ``ccop-mm`` runs those in ``.mim``.
    """
    if '.mim' in Path(script).parts:
        return ['ccop-mm', Path(script).stem.replace('_', '-')]
    return [*([] if Path(script).suffix == '.sh' else ['python']), str(script)]


def tool_command(tool: str) -> list[str]:
    """Returns the words that run another tool the way this process was started.

    Args:
        tool (str): File in ``tools/``, such as ``'train.py'`` or ``'dist_train.sh'``.
    """
    installed = '.mim' in Path(sys.argv[0]).parts
    return console_command(Path(sys.argv[0]).with_name(tool) if installed else Path('tools', tool))


def run_command(title: str, command: Sequence[str | Path], log: Path, root: Path) -> float:
    """Runs a command, writes its output to a log file and shows its progress in one line.

    Args:
        title (str): Title to print before the command.
        command (Sequence[str | Path]): Python interpreter, script and arguments.
        log (Path): File for stdout and stderr. Parent directories are created.
        root (Path): Working directory of the command, usually the root of the repository.

    Returns:
        float: Wall time in seconds.

    Raises:
        InputError: The command failed. The message ends with the last 20 lines of its output.
    """
    words = [str(part) for part in command]
    shown = [str(Path(word).relative_to(root)) if word.startswith(f'{root}/tools') else word for word in words]
    print(f'\n{title}\n  python {shlex.join(shown[1:])}', flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    # OpenMP threads that spin while they wait slow training down on busy cores (docs/performance.md).
    environment = {'OMP_WAIT_POLICY': 'passive', 'GOMP_SPINCOUNT': '2000', **os.environ}
    started = time.monotonic()
    last_lines: list[str] = []
    with (
        open(log, 'w', encoding='utf-8') as file,
        tqdm(bar_format='  {elapsed} {desc}', leave=False, disable=None) as bar,
        subprocess.Popen(
            words, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            last_lines = [*last_lines[-19:], line.rstrip()]
            if found := PROGRESS.search(line):
                epoch, iteration, iterations, loss = found.groups()
                prefix = f'epoch {epoch}, ' if epoch else ''
                bar.set_description_str(f'{prefix}{iteration} of {iterations}' + (f', loss {loss}' if loss else ''))
    if process.returncode:
        raise InputError(f'"{title}" failed; complete output: {log}; last lines:\n' + '\n'.join(last_lines))
    return time.monotonic() - started
