"""The Python client's example."""

from __future__ import annotations

import sys

import pytest

from .contract import CLIENTS, ExampleContract


@pytest.fixture(scope="module")
def example() -> list[str]:
    return [sys.executable, str(CLIENTS / "python" / "examples" / "run.py")]


class TestPythonExample(ExampleContract):
    pass
