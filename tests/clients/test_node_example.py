"""The TypeScript client."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .contract import CLIENTS, ExampleContract, require

TYPESCRIPT = CLIENTS / "typescript"


@pytest.fixture(scope="module")
def package() -> Path:
    """The package's folder, its dependencies installed as the lock file has them."""
    require("node", "npm")
    lock, installed = TYPESCRIPT / "package-lock.json", TYPESCRIPT / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        subprocess.run(["npm", "ci"], cwd=TYPESCRIPT, check=True)
    return TYPESCRIPT


@pytest.fixture(scope="module")
def example(package: Path) -> list[str]:
    subprocess.run(["npm", "run", "build"], cwd=package, check=True)
    return ["node", str(package / "dist" / "examples" / "run.js")]


def test_the_clients_own_tests_pass(package: Path) -> None:
    subprocess.run(["npm", "test"], cwd=package, check=True)


class TestNodeExample(ExampleContract):
    pass
