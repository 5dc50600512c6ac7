"""How `dmesh run` finds the mesh that `dmesh up` started, and what `dmesh up` starts it with."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deadlinemesh.hosting.settings import CommandSettings
from deadlinemesh.identity.keys import with_fresh_keys
from deadlinemesh.local import state as states
from deadlinemesh.local.state import MeshState, TenantState
from deadlinemesh.local.tailoring import Tailor, as_yaml, with_default_model
from deadlinemesh.policy import OpenAIModel, default_policy, parse
from deadlinemesh.views.run import NoMesh, Target, find_mesh

STATE = MeshState(
    address="127.0.0.1:50051",
    tenants={"acme": TenantState("enterprise", "key-a"), "cora": TenantState("free", "key-c")},
    mesh_token="token",
    inner={"llm-proxy": "127.0.0.1:1", "tool-runner": "127.0.0.1:2"},
    demo_world="",
    models=("demo",),
    policy_file="/nowhere/policy.yaml",
    pid=os.getpid(),
    processes={"orchestrator": 1},
)


@pytest.fixture
def settings(tmp_path: Path) -> CommandSettings:
    return CommandSettings(state_file=tmp_path / "mesh" / "up.json", addr="", api_key="")


@pytest.fixture
def path(settings: CommandSettings) -> Path:
    states.write(STATE, settings.state_path)
    return settings.state_path


def test_the_state_is_read_as_it_was_written_and_only_by_its_owner(path: Path) -> None:
    assert states.read(path) == STATE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [one.name for one in path.parent.iterdir()] == ["up.json"]


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"tenants": {"a": 1}}', "no json"])
def test_a_broken_state_is_none(path: Path, text: str) -> None:
    path.write_text(text)
    assert states.read(path) is None


def test_a_mesh_whose_supervisor_is_gone_is_none(path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    states.write(replace(STATE, pid=gone.pid), path)
    assert states.read(path) is None


def test_only_its_own_state_is_forgotten(path: Path) -> None:
    states.write(replace(STATE, pid=os.getppid()), path)
    states.forget(path)
    assert path.exists()
    states.write(STATE, path)
    states.forget(path)
    assert not path.exists()


def test_the_mesh_that_is_up_is_called_as_its_first_tenant_or_the_one_that_is_named(
    settings: CommandSettings, path: Path
) -> None:
    assert find_mesh(settings, "", "", "", None) == Target(STATE.address, "key-a")
    assert find_mesh(settings, "cora", "", "", True) == Target(STATE.address, "key-c", True)


def test_what_is_named_comes_before_the_environment_and_that_before_the_mesh_that_is_up(
    settings: CommandSettings, path: Path
) -> None:
    elsewhere = settings.model_copy(update={"addr": "mesh.example.com:443", "api_key": "key-env"})
    assert find_mesh(elsewhere, "", "", "", None) == Target("mesh.example.com:443", "key-env")
    assert find_mesh(elsewhere, "", "10.0.0.1:1", "key", None) == Target("10.0.0.1:1", "key")
    assert find_mesh(elsewhere, "cora", "", "", None) == Target(STATE.address, "key-c")


def test_a_key_is_never_sent_to_another_mesh_than_its_own(settings: CommandSettings, path: Path) -> None:
    with pytest.raises(NoMesh, match=r"no key for 10\.0\.0\.1:1"):
        find_mesh(settings, "", "10.0.0.1:1", "", None)
    with pytest.raises(NoMesh, match=r"no key for 10\.0\.0\.1:1"):
        find_mesh(settings, "acme", "10.0.0.1:1", "", None)


def test_a_key_that_cannot_be_sent_is_told_with_where_it_comes_from(settings: CommandSettings, path: Path) -> None:
    mounted = settings.model_copy(update={"api_key": "key-env\n"})
    assert find_mesh(mounted, "", "10.0.0.1:1", "", None) == Target("10.0.0.1:1", "key-env")
    with pytest.raises(NoMesh, match="DMESH_API_KEY: the API key has characters"):
        find_mesh(settings.model_copy(update={"api_key": "two\nlines"}), "", "10.0.0.1:1", "", None)
    with pytest.raises(NoMesh, match="--key: the API key has characters"):
        find_mesh(settings, "", "10.0.0.1:1", "clé", None)


def test_what_is_missing_is_named(settings: CommandSettings) -> None:
    with pytest.raises(NoMesh, match="start one with `dmesh up`"):
        find_mesh(settings, "", "", "", None)
    with pytest.raises(NoMesh, match="not both"):
        find_mesh(settings, "acme", "", "key", None)
    states.write(STATE, settings.state_path)
    with pytest.raises(NoMesh, match="one of acme, cora"):
        find_mesh(settings, "zed", "", "", None)


def test_the_state_file_is_in_the_runtime_folder_or_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("DMESH_STATE_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CommandSettings().state_path == tmp_path / ".cache" / "deadlinemesh" / "up.json"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert CommandSettings().state_path == Path("/run/user/7/deadlinemesh/up.json")
    monkeypatch.setenv("DMESH_STATE_FILE", "/elsewhere.json")
    assert CommandSettings().state_path == Path("/elsewhere.json")


def test_the_effective_policy_is_a_policy_file_again() -> None:
    policy, _ = with_fresh_keys(default_policy())
    assert parse(as_yaml(policy), "policy.yaml") == policy


def test_a_seed_is_that_of_every_scripted_model() -> None:
    models = Tailor(seed=7).fit(default_policy()).models
    assert {getattr(model, "seed", None) for model in models.values()} == {7}
    assert Tailor().fit(default_policy()).models == default_policy().models


def test_a_tenant_keeps_its_key_from_policy_to_policy() -> None:
    policy, tailor = default_policy(), Tailor()
    first = tailor.fit(policy)
    keys = dict(tailor.keys)
    without = policy.model_copy(update={"tenants": {"acme": policy.tenants["acme"]}})
    assert tailor.fit(without).tenants == {"acme": first.tenants["acme"]}
    newcomer = policy.model_copy(update={"tenants": {**policy.tenants, "dune": policy.tenants["cora"]}})
    assert tailor.fit(newcomer).tenants["bolt"] == first.tenants["bolt"]
    assert {name: key for name, key in tailor.keys.items() if name != "dune"} == keys
    assert len(tailor.keys["dune"]) > 20


def test_the_models_of_the_command_line_come_first_for_every_tenant() -> None:
    policy = default_policy()
    cora = policy.tenants["cora"].model_copy(update={"models": ("fast",)})
    policy = policy.model_copy(update={"tenants": {**policy.tenants, "cora": cora}})
    changed = with_default_model(policy, "openai", OpenAIModel(provider="openai", model="some-model"))
    assert changed.models_of("acme") == ("openai", "demo", "fast")
    assert changed.models_of("cora") == ("openai", "fast")
    assert parse(as_yaml(changed), "policy.yaml") == changed
