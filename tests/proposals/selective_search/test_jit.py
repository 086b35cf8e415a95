"""Machine code is made once, kept, and found by other processes; what happens without numba."""

import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from ccop_mm.proposals.selective_search import jit

ROOT = Path(__file__).resolve().parents[3]
#: Makes the package's modules importable without what ccop_mm/__init__.py imports: torch and the host libraries.
WITHOUT_HOSTS = (
    'import sys, types\n'
    'package = sys.modules["ccop_mm"] = types.ModuleType("ccop_mm")\n'
    f'package.__path__ = [{str(ROOT / "ccop_mm")!r}]\n'
)


def run_python(code, **variables):
    environment = {**os.environ, **variables, 'PYTHONPATH': str(ROOT)}
    return subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, timeout=600)


def test_other_processes_find_every_kernel_on_disk():
    """This process has compiled them, or found them, on import; so does the parent of worker processes."""
    code = (
        'import sys, ccop_mm, ccop_mm.proposals.run\n'
        'assert "numba" not in sys.modules\n'  # it is imported when a search begins
        'from ccop_mm.proposals.search import require_search; require_search()\n'
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


def test_missing_numba_is_one_line_that_names_both_cures():
    code = (
        'sys.modules["numba"] = None\n'
        'from ccop_mm.errors import exit_on_input_error\n'
        'from ccop_mm.proposals.run import Rules\n'
        'Rules(engine="opencv").require()\n'
        'sys.exit(exit_on_input_error(Rules().require)())\n'
    )
    done = run_python(WITHOUT_HOSTS + code)
    assert done.returncode not in (0, None)
    assert "pip install numba, or choose engine 'opencv'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_first_compilation_says_so_and_the_cache_folder_can_be_chosen(tmp_path):
    (tmp_path / 'work.py').write_text(
        'from ccop_mm.proposals.selective_search.jit import kernel\n'
        '@kernel("int64(int64)")\n'
        'def twice(n):\n'
        '    return 2 * n\n'
        'print(twice(21), sum(twice.stats.cache_hits.values()))\n'
    )
    code = (
        # jit.py alone, without the kernels of its package
        'stub = sys.modules["ccop_mm.proposals.selective_search"] = types.ModuleType("stub")\n'
        f'stub.__path__ = [{str(Path(jit.__file__).parent)!r}]\n'
        f'sys.path.insert(0, {str(tmp_path)!r}); import work\n'
    )
    first = run_python(WITHOUT_HOSTS + code, NUMBA_CACHE_DIR=str(tmp_path / 'cache'))
    again = run_python(WITHOUT_HOSTS + code, NUMBA_CACHE_DIR=str(tmp_path / 'cache'))
    assert (first.stdout.split(), again.stdout.split()) == (['42', '0'], ['42', '1']), first.stderr + again.stderr
    assert 'compiling selective search for this machine' in first.stderr
    assert again.stderr == ''
    assert list((tmp_path / 'cache').rglob('*.nbc'))


def test_nowhere_to_keep_machine_code_is_a_warning(monkeypatch):
    compile_ = numba.njit

    def njit(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'half': no locator available for file 'x.py'")
        return compile_(**options)

    monkeypatch.setattr(jit.numba, 'njit', njit)
    monkeypatch.setattr(jit, '_announced', True)
    with pytest.warns(UserWarning, match='set NUMBA_CACHE_DIR'):
        half = jit.kernel('float64(int64)')(_half)
    assert half(3) == 1.5


def _half(n):
    return n / 2
