"""The manifests as `scripts/check_manifests.py` renders them, for the tests that look at them or run them."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

__all__ = ["BASE", "DEDICATED", "ROOT", "manifests", "render"]

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "k8s" / "base"
DEDICATED = ROOT / "k8s" / "overlays" / "dedicated"


def _script() -> ModuleType:
    # scripts/ is no package: its files are commands. dataclasses look their module up by name, so it must be listed.
    spec = importlib.util.spec_from_file_location("check_manifests", ROOT / "scripts" / "check_manifests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


manifests = _script()


def render(directory: Path) -> list[Any]:
    """The directory's documents. Where nothing can render them the test is skipped, and in CI it fails."""
    try:
        documents: list[Any] = manifests.render(directory)
    except manifests.RendererMissing as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    return documents
