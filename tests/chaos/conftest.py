"""One mesh for all scenarios, the tools that they need, and what they came to."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.chaos.invariants import TALLY
from tests.chaos.mesh import Mesh, running_mesh
from tests.chaos.toxics import SERVER

_TOOLS = Path(__file__).resolve().parents[2] / ".tools"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each scenario is played in the loop in which the mesh was started, and is marked as what it is."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name != "test_invariants.py":
            item.add_marker(pytest.mark.chaos)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY.scenarios:
        terminalreporter.section("chaos")
        terminalreporter.write_line(str(TALLY))


@pytest_asyncio.fixture(scope="session", loop_scope="session", name="mesh")
async def _mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    program = shutil.which(SERVER, path=os.pathsep.join((str(_TOOLS), os.environ.get("PATH", ""))))
    if program is None:
        reason = f"not installed: {SERVER}: `make tools` installs it, with Go"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    async with running_mesh(program, tmp_path_factory.mktemp("chaos")) as mesh:
        yield mesh


@pytest_asyncio.fixture(loop_scope="session", autouse=True)
async def _mended(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Whatever becomes of a scenario, the next one finds the mesh in order."""
    yield
    if "mesh" in request.fixturenames:
        await request.getfixturevalue("mesh").heal()
