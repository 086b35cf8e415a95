"""Kernels are compiled once and cached for other processes; numba is optional."""

import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from ccop_mm.proposals.selective_search import jit

ROOT = Path(__file__).resolve().parents[3]
#: Makes the modules of the package importable without ccop_mm/__init__.py.
WITHOUT_INIT = (
    'import sys, types\n'
    'package = sys.modules["ccop_mm"] = types.ModuleType("ccop_mm")\n'
    f'package.__path__ = [{str(ROOT / "ccop_mm")!r}]\n'
)


def run_python(code, **variables):
    environment = {**os.environ, **variables, 'PYTHONPATH': str(ROOT)}
    return subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_other_processes_find_every_kernel_in_the_cache():
    """This process has compiled or loaded them on import, as the parent of worker processes does."""
    code = (
        'import sys, ccop_mm, ccop_mm.proposals.runner.run\n'
        'assert "numba" not in sys.modules\n'  # imported when a search starts
        'from ccop_mm.proposals.candidates import require_engine; require_engine()\n'
        'from ccop_mm.proposals.selective_search import features, graph, grouping\n'
        'kernels = [v for m in (features, graph, grouping) for v in vars(m).values() if getattr(v, "signatures", ())]\n'
        'print(len(kernels), sum(map(lambda k: sum(k.stats.cache_misses.values()), kernels)))\n'
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert 'compiling' not in done.stderr
    kernels, misses = map(int, done.stdout.split())
    assert kernels > 10
    assert misses == 0


def test_missing_numba_is_reported_with_both_fixes():
    code = (
        'sys.modules["numba"] = None\n'
        'from ccop_mm.utils.errors import exit_on_input_error\n'
        'from ccop_mm.proposals.candidates import require_engine\n'
        'require_engine(engine="opencv")\n'
        'sys.exit(exit_on_input_error(require_engine)())\n'
    )
    done = run_python(WITHOUT_INIT + code)
    assert done.returncode == 2
    assert 'pip install numba' in done.stderr and "'opencv'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_first_compilation_is_announced_and_the_cache_folder_is_configurable(tmp_path):
    (tmp_path / 'work.py').write_text(
        'from ccop_mm.proposals.selective_search.jit import kernel\n'
        '@kernel("int64(int64)")\n'
        'def twice(n):\n'
        '    return 2 * n\n'
        'print(twice(21), sum(twice.stats.cache_hits.values()))\n'
    )
    code = (
        # jit.py only, without the kernels of its package
        'stub = sys.modules["ccop_mm.proposals.selective_search"] = types.ModuleType("stub")\n'
        f'stub.__path__ = [{str(Path(jit.__file__).parent)!r}]\n'
        f'sys.path.insert(0, {str(tmp_path)!r}); import work\n'
    )
    first = run_python(WITHOUT_INIT + code, NUMBA_CACHE_DIR=str(tmp_path / 'cache'))
    again = run_python(WITHOUT_INIT + code, NUMBA_CACHE_DIR=str(tmp_path / 'cache'))
    assert (first.stdout.split(), again.stdout.split()) == (['42', '0'], ['42', '1']), first.stderr + again.stderr
    assert 'compiling' in first.stderr
    assert again.stderr == ''
    assert list((tmp_path / 'cache').rglob('*.nbc'))


def test_unwritable_cache_is_a_warning(monkeypatch):
    compile_ = numba.njit

    def njit(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'half': no locator available for file 'x.py'")
        return compile_(**options)

    monkeypatch.setattr(jit.numba, 'njit', njit)
    monkeypatch.setattr(jit, '_announced', True)
    with pytest.warns(UserWarning, match='NUMBA_CACHE_DIR'):
        half = jit.kernel('float64(int64)')(_half)
    assert half(3) == 1.5


def _half(n):
    return n / 2
