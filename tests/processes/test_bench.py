"""The quick benchmarks run to their end and print what they promise. What they measure is not judged: CI is no quiet machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.up import dmesh

pytestmark = [pytest.mark.processes, pytest.mark.long]


@pytest.mark.parametrize(
    ("name", "repetitions", "figures"),
    [
        ("drift", 5, {"mesh", "plain"}),
        ("overhead", 1, {"unary", "stream"}),
    ],
)
def test_it_ends_with_one_object_that_names_every_bar(
    tmp_path: Path, name: str, repetitions: int, figures: set[str]
) -> None:
    done = dmesh(tmp_path / "up.json", "bench", name, "--repetitions", str(repetitions), "--json")
    assert done.returncode in (0, 3), done.stderr
    told = json.loads(done.stdout)
    assert (told["name"], told["repetitions"]) == (name, repetitions)
    assert figures <= told.keys()
    assert told["holds"] is (done.returncode == 0) is all(bar["holds"] for bar in told["bars"])
    assert all(set(bar) == {"what", "measured", "limit", "holds"} for bar in told["bars"])
