"""The plan of the house: import contracts, names that exist once, faces that match their folders."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import grimp
import pytest
from importlinter import api
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.independence import IndependenceContract
from importlinter.contracts.layers import LayersContract
from importlinter.contracts.protected import ProtectedContract

import deadlinemesh

PACKAGE = Path(deadlinemesh.__file__).parent
CONFIG = PACKAGE.parents[1] / "pyproject.toml"

KINDS = {one.type_name: one for one in (ForbiddenContract, IndependenceContract, LayersContract, ProtectedContract)}

PLANTED = {
    "Imports go one way": ("deadlinemesh.policy.model", "deadlinemesh.hosting.settings"),
    "Services never import one another": ("deadlinemesh.llm_proxy.service", "deadlinemesh.tool_runner.service"),
    "A run goes forward only": ("deadlinemesh.orchestrator.execution", "deadlinemesh.orchestrator.servicer"),
    "The core is pure": ("deadlinemesh.deadline.scope", "grpc"),
    "Only servicers, adapters, the codec and clients see the wire's messages": (
        "deadlinemesh.orchestrator.agent",
        "deadlinemesh.v1.common_pb2",
    ),
    "Services know no gRPC but at their edges": ("deadlinemesh.tool_runner.registry", "grpc"),
}
"""For each contract an import that breaks it."""


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("deadlinemesh", include_external_packages=True, cache_dir=None)


@cache
def options() -> dict[str, Any]:
    found: dict[str, Any] = api.read_configuration(str(CONFIG))
    return found


def holds(name: str, graph: grimp.ImportGraph) -> bool:
    chosen = next(one for one in options()["contracts_options"] if one["name"] == name)
    contract = KINDS[chosen["type"]](name=name, session_options=options()["session_options"], contract_options=chosen)
    return bool(contract.check(graph=graph, verbose=False).kept)


def test_each_contract_has_a_planted_violation() -> None:
    assert {one["name"] for one in options()["contracts_options"]} == set(PLANTED)


@pytest.mark.parametrize("name", PLANTED)
def test_contract_holds_and_catches_a_violation(name: str) -> None:
    assert holds(name, deepcopy(graph()))
    importer, imported = PLANTED[name]
    planted = deepcopy(graph())
    planted.add_import(importer=importer, imported=imported, line_number=1, line_contents="planted")
    assert not holds(name, planted)


def modules() -> Iterator[tuple[str, ast.Module]]:
    """The project's modules by dotted name, without generated ones."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if "v1" not in parts:
            yield ".".join(parts).removesuffix(".__init__"), ast.parse(path.read_text("utf-8"))


def test_public_class_name_exists_once() -> None:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for name, tree in modules():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    assert {one: where for one, where in places.items() if len(where) > 1} == {}


def test_private_name_stays_in_its_package() -> None:
    found = [
        f"{name} imports {node.module}.{alias.name}"
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("deadlinemesh.")
        for alias in node.names
        if alias.name.startswith("_") and node.module.split(".")[:2] != name.split(".")[:2]
    ]
    assert found == []


def packages() -> list[Path]:
    found = [path.parent for path in PACKAGE.rglob("__init__.py") if "v1" not in path.parts]
    return [path for path in found if path != PACKAGE and len(list(path.glob("*.py"))) > 1]


@pytest.mark.parametrize("package", packages(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_face_lists_each_module_of_its_package(package: Path) -> None:
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text("utf-8"))) or ""
    listed = set(re.findall(r"^\s*([a-z_]+)(?:\.py|/)", text, re.MULTILINE))
    present = {path.stem for path in package.glob("*.py") if not path.stem.startswith("__")}
    folders = {path.name for path in package.iterdir() if (path / "__init__.py").is_file()}
    inner = {path.stem for folder in folders for path in (package / folder).glob("*.py")}
    assert present - listed == set(), "the package's docstring does not list these modules"
    assert listed - present - folders - inner == set(), "the package's docstring lists modules that do not exist"
