"""The Go client."""

from __future__ import annotations

import subprocess

import pytest

from .contract import CLIENTS, ExampleContract, require

GO = CLIENTS / "go"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    require("go")
    binary = str(tmp_path_factory.mktemp("go") / "run")
    subprocess.run(["go", "build", "-o", binary, "./examples/run"], cwd=GO, check=True)
    return [binary]


def test_the_clients_own_tests_pass() -> None:
    require("go")
    subprocess.run(["go", "test", "-timeout=60s", "./..."], cwd=GO, check=True)


class TestGoExample(ExampleContract):
    pass
