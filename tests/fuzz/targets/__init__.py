"""The targets. Each module has `target(data: bytes) -> None`, and may have:

MAX_BYTES     the longest input that libFuzzer makes
JSON_LINES    whether an input is lines of JSON, and is mutated as such
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, cast

__all__ = ["NAMES", "Target", "inputs_of", "target_of"]

NAMES = (
    *("wire", "gates", "messages", "status", "policy", "policy_values", "headers"),
    *("sse", "chunks", "scripted", "frames", "worker", "keeper", "arguments", "url"),
)

_FOLDER = Path(__file__).parents[1]


class Target(Protocol):
    """Reads one input. Raises whatever is a finding."""

    def __call__(self, data: bytes) -> None: ...


def target_of(name: str) -> Target:
    """The target of this name."""
    return cast(Target, importlib.import_module(f"{__name__}.{name}").target)


def inputs_of(name: str, *folders: str) -> list[Path]:
    """The committed inputs of a target in `folders`: `seeds`, `found`."""
    return sorted(path for folder in folders for path in (_FOLDER / folder / name).glob("*"))
