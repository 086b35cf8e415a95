import subprocess
import sys
from pathlib import Path

import ccop_mm

ROOT = Path(__file__).resolve().parents[1]


def test_setup_reads_the_version_of_the_package():
    run = subprocess.run(
        [sys.executable, 'setup.py', '--version'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines()[-1] == ccop_mm.__version__
