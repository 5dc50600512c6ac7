"""Every committed seed, and every input that failed once, through its target. The fuzzers go on from there: `make fuzz`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fuzz.targets import NAMES, inputs_of, target_of

INPUTS = [
    pytest.param(name, path, id=f"{name}-{path.name}") for name in NAMES for path in inputs_of(name, "seeds", "found")
]


@pytest.mark.parametrize(("name", "path"), INPUTS)
def test_input_keeps_what_its_target_asserts(name: str, path: Path) -> None:
    target_of(name)(path.read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_target_has_seeds(name: str) -> None:
    assert inputs_of(name, "seeds")


@pytest.mark.parametrize("name", NAMES)
def test_target_takes_no_input_amiss(name: str) -> None:
    for data in (b"", b"\n", b"\0" * 99, b"\xff\xfe\n\x80"):
        target_of(name)(data)
