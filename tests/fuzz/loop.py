"""One target under libFuzzer: `python -m tests.fuzz.loop TARGET [libFuzzer's arguments]`."""

from __future__ import annotations

import importlib
import logging
import sys

import atheris
from tests.fuzz.mutating import mutated

MAX_BYTES = 4096


def main() -> None:
    name = sys.argv[1]
    logging.disable()  # what the mesh logs is not looked at, and costs time
    module = f"tests.fuzz.targets.{name}"
    with atheris.instrument_imports(include=["deadlinemesh", module, *_libraries(name)], enable_loader_override=False):
        target = importlib.import_module(module)
    options = {"custom_mutator": _mutator} if getattr(target, "JSON_LINES", False) else {}
    bound = f"-max_len={getattr(target, 'MAX_BYTES', MAX_BYTES)}"
    atheris.Setup([sys.argv[0], bound, *sys.argv[2:]], target.target, **options)
    atheris.Fuzz()


def _libraries(name: str) -> tuple[str, ...]:
    return {
        "headers": ("email._parseaddr",),
        "sse": ("openai._streaming",),
        "arguments": ("jsonschema",),
    }.get(name, ())


def _mutator(data: bytes, most: int, seed: int) -> bytes:
    return mutated(data, most, seed, atheris.Mutate)


if __name__ == "__main__":
    main()
