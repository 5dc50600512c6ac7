"""Files that only their owner may read."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["replace_private", "write_private"]


def write_private(path: Path, text: str) -> None:
    """Write `text` to a file that only its owner may read. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def replace_private(path: Path, text: str) -> None:
    """Like `write_private`, but atomically: no reader sees half of the text. Raises OSError."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    write_private(fresh, text)
    fresh.replace(path)
