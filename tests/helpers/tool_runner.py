"""Calls the command-line tools in the process of the test."""

import importlib.util
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


def load_tool(name):
    """Imports a tool by its path relative to tools/, such as ``misc/replay.py``; returns a new module."""
    spec = importlib.util.spec_from_file_location(f'tool_{Path(name).stem}', TOOLS / name)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@pytest.fixture
def call_tool(monkeypatch, capsys):
    """``call_tool(name, *arguments)`` calls the main function of a tool; returns its exit code, stdout and stderr."""

    def call(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [str(TOOLS / name), *map(str, arguments)])
        tool = load_tool(name)
        capsys.readouterr()  # discards what was printed before
        try:
            code = tool.main()
        except SystemExit as stop:
            code = stop.code
        return (code or 0, *capsys.readouterr())

    return call
