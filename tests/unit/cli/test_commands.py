"""The commands as they are typed: what they print and how they exit."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

import deadlinemesh.cli
from deadlinemesh.cli import bench as benches
from deadlinemesh.cli.app import _seconds, app
from deadlinemesh.cli.policy import hash_a_key
from deadlinemesh.hosting.settings import CommandSettings, HopSettings
from deadlinemesh.identity.keys import hash_key
from deadlinemesh.views.output import EXIT_CODES


@pytest.fixture(autouse=True)
def _no_mesh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DMESH_ADDR", "DMESH_API_KEY", "DMESH_MESH_TOKEN", "DMESH_MESH_TOKEN_FILE", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DMESH_STATE_FILE", str(tmp_path / "up.json"))


def dmesh(*arguments: str, typed: str = "") -> tuple[int, str, str]:
    """The exit code, standard output and standard error."""
    result = CliRunner().invoke(app, arguments, input=typed)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("command", [[], ["run"]])
def test_help_tells_the_exit_codes(command: list[str]) -> None:
    code, out, _ = dmesh(*command, "--help")
    assert code == 0
    assert " ".join(EXIT_CODES.split()) in " ".join(out.split())


@pytest.mark.parametrize("command", ["up", "serve", "run", "demo", "bench", "policy"])
def test_every_command_is_explained_in_one_whole_sentence(command: str) -> None:
    listed = dmesh("--help")[1]
    line = next(line for line in listed.splitlines() if line.strip().startswith(command))
    assert line.rstrip().endswith(".")
    assert not line.rstrip().endswith("...")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["serve", "nope"], "'nope' is no service: one of orchestrator, llm-proxy, tool-runner, edge"),
        (["serve", "llm-proxy"], "set DMESH_MESH_TOKEN_FILE (or DMESH_MESH_TOKEN)"),
        (["up", "--llm", "nope"], "--llm 'nope' is not one of scripted, local, openai"),
        (["up", "--traces", "nonsense"], "--traces 'nonsense' is not one of off, file:PATH, otlp"),
        (["up", "--traces", "file:"], "--traces 'file:' is not one of off, file:PATH, otlp"),
        (["up", "--port", "0", "--no-demo-world", "--llm", "openai"], "set OPENAI_API_KEY"),
        (["run", "hello"], "start one with `dmesh up`"),
        (["run", "hello", "--deadline", "soon"], "write 250ms, 30s, 5m, 1h"),
        (["run", "hello", "--deadline=-2"], "write 500ms, 20s or 2m"),
        (["bench", "nope"], "'nope' is no benchmark: one of"),
        (["bench"], "name a benchmark: one of"),
    ],
)
def test_wrong_usage_is_explained_and_exits_with_2(arguments: list[str], complaint: str) -> None:
    code, out, err = dmesh(*arguments)
    assert (code, out) == (2, "")
    assert complaint in err
    assert "Traceback" not in err


def test_an_endpoint_that_is_none_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OPENAI_BASE_URL", "example.com/v1")
    code, _, err = dmesh("up", "--port", "0", "--no-demo-world", "--llm", "openai")
    assert code == 2
    assert "--llm openai: this is not an HTTP URL" in err


def test_settings_that_are_wrong_are_named_by_their_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMESH_MESH_TOKEN", "t")
    monkeypatch.setenv("DMESH_DRAIN_SECONDS", "-1")
    monkeypatch.setenv("DMESH_LOG_LEVEL", "LOUD")
    code, _, err = dmesh("serve", "tool-runner")
    assert code == 2
    assert [line.split(": ")[1] for line in err.splitlines()] == ["DMESH_DRAIN_SECONDS", "DMESH_LOG_LEVEL"]


def test_the_token_is_the_files_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DMESH_MESH_TOKEN", "stray")
    assert HopSettings().token() == "stray"
    file = tmp_path / "token"
    monkeypatch.setenv("DMESH_MESH_TOKEN_FILE", str(file))
    file.write_text("mounted\n")
    assert HopSettings().token() == "mounted"
    file.write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        HopSettings().token()


@pytest.mark.parametrize(
    ("settings", "variable", "field"),
    [
        (HopSettings, "DMESH_POLICY_FILE", "policy_file"),
        (HopSettings, "DMESH_MESH_TOKEN_FILE", "mesh_token_file"),
        (HopSettings, "DMESH_EVENTS_FILE", "events_file"),
        (CommandSettings, "DMESH_STATE_FILE", "state_file"),
        (CommandSettings, "XDG_RUNTIME_DIR", "runtime_dir"),
    ],
)
def test_a_path_that_is_set_but_empty_is_not_set(
    monkeypatch: pytest.MonkeyPatch, settings: Any, variable: str, field: str
) -> None:
    monkeypatch.setenv("DMESH_MESH_TOKEN", "t")
    monkeypatch.setenv(variable, "")
    assert getattr(settings(), field) is None


@pytest.mark.parametrize(("value", "read"), [("", None), ("70000-70255", (70000, 70255))])
def test_users_of_workers_are_a_range_or_none(monkeypatch: pytest.MonkeyPatch, value: str, read: Any) -> None:
    monkeypatch.setenv("DMESH_MESH_TOKEN", "t")
    monkeypatch.setenv("DMESH_WORKER_UIDS", value)
    assert HopSettings().worker_uids == read


@pytest.mark.parametrize("value", ["0-10", "10", "20-10", "a-b", "1-99999999999", "70000-70009"])
def test_a_wrong_range_of_users_is_told(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DMESH_MESH_TOKEN", "t")
    monkeypatch.setenv("DMESH_WORKER_UIDS", value)
    with pytest.raises(ValidationError, match="as in 61184-65519"):
        HopSettings()


def test_a_service_does_not_start_with_a_wrong_policy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("tiers: {}\n")
    monkeypatch.setenv("DMESH_MESH_TOKEN", "t")
    monkeypatch.setenv("DMESH_POLICY_FILE", str(policy))
    code, _, err = dmesh("serve", "tool-runner")
    assert code == 2
    assert f"{policy}:1: tiers" in err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20s", 20.0), ("500ms", 0.5), ("2m", 120.0), ("20", 20.0), ("1.5", 1.5), ("0", None), ("0s", None)],
)
def test_a_deadline_is_typed_as_in_policy_and_0_leaves_it_to_the_tier(text: str, seconds: float | None) -> None:
    assert _seconds(text) == seconds


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "-1s", "", "soon"])
def test_what_is_no_deadline_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write"):
        _seconds(text)


def test_the_embedded_policy_passes_its_own_check(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(dmesh("policy", "show")[1])
    code, out, err = dmesh("policy", "check", str(policy))
    assert (code, err) == (0, "")
    assert out.startswith(f"{policy}: OK: 3 tiers, 3 tenants, 2 models, ")
    assert json.loads(dmesh("policy", "check", str(policy), "--json")[1])["ok"] is True


def test_every_problem_of_a_policy_has_its_line(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    wrong = dmesh("policy", "show")[1].replace("run_budget: 30s", "run_budget: soon").replace("tier: free", "tier: fre")
    policy.write_text(wrong)
    code, out, err = dmesh("policy", "check", str(policy))
    assert (code, out) == (2, "")
    lines = err.splitlines()
    numbers = [n for n, line in enumerate(wrong.splitlines(), 1) if "soon" in line or "tier: fre" in line]
    assert [line.split(": ")[0] for line in lines] == [f"{policy}:{number}" for number in numbers]
    assert [line.split(": ")[1] for line in lines] == ["tiers.free.run_budget", "tenants.cora.tier"]
    code, out, _ = dmesh("policy", "check", str(policy), "--json")
    told = json.loads(out)
    assert (code, told["ok"]) == (2, False)
    assert [problem["line"] for problem in told["problems"]] == numbers


KEYED = """\
  gpt:
    provider: openai
    model: gpt-x
    api_key_env: GPT_KEY
"""


def test_a_variable_that_is_not_set_here_is_a_warning_with_its_line_and_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(dmesh("policy", "show")[1].replace("\nmodels:\n", f"\nmodels:\n{KEYED}"))
    line = policy.read_text().splitlines().index("    api_key_env: GPT_KEY") + 1
    monkeypatch.delenv("GPT_KEY", raising=False)
    code, out, err = dmesh("policy", "check", str(policy))
    reason = "GPT_KEY is not set here: an llm-proxy without it refuses every call to this model"
    assert (code, err) == (0, f"warning: {policy}:{line}: models.gpt.api_key_env: {reason}\n")
    assert out.startswith(f"{policy}: OK: ")
    (told,) = json.loads(dmesh("policy", "check", str(policy), "--json")[1])["warnings"]
    assert told == {"file": str(policy), "line": line, "path": "models.gpt.api_key_env", "reason": reason}
    monkeypatch.setenv("GPT_KEY", "sesame")
    assert dmesh("policy", "check", str(policy))[2] == ""


def test_it_is_told_that_no_model_or_no_tool_runner_would_be_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPT_KEY", raising=False)
    monkeypatch.delenv("CRM_TOKEN", raising=False)
    policy = tmp_path / "policy.yaml"
    key = "sha256:" + "a" * 64
    policy.write_text(
        "tiers: {free: {run_budget: 30s, iterations: 2}}\n"
        f"tenants: {{acme: {{tier: free, api_keys: ['{key}']}}}}\n"
        f"models:\n{KEYED}"
        "tools: {http: {crm: {url: 'http://crm.example', description: x, headers_env: {X-Token: CRM_TOKEN}}}}\n"
    )
    assert dmesh("policy", "check", str(policy))[2].splitlines() == [
        f"warning: {policy}:7: models.gpt.api_key_env: GPT_KEY is not set here: an llm-proxy without it does not start: "
        "no model is left",
        f"warning: {policy}:8: tools.http.crm.headers_env.X-Token: CRM_TOKEN is not set here: a tool-runner without it "
        "does not start",
    ]


MODULE = """\
from typing import Annotated
from pydantic import Field
from deadlinemesh.tool_runner import tool

print("imported")

@tool
async def find(code: Annotated[str, Field(pattern={pattern!r})]) -> None:
    \"\"\"Find.\"\"\"
"""


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[int, list[str]]]]:
    """The exit code and the complaints of a check of the embedded policy whose modules and first tenant's tools are these."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def check(modules: str, tools: str = "[]") -> tuple[int, list[str]]:
        shown = dmesh("policy", "show")[1]
        text = re.sub(r"modules: .*", f"modules: {modules}", shown)
        text = text.replace("  acme:\n", f"  acme:\n    tools: {tools}\n", 1)
        assert text != shown
        (tmp_path / "policy.yaml").write_text(text)
        code, _, err = dmesh("policy", "check", str(tmp_path / "policy.yaml"))
        lines = {f"{tmp_path / 'policy.yaml'}:{n}:": line for n, line in enumerate(text.splitlines(), 1)}
        told = [line for line in err.splitlines() if line != "imported"]
        for line in told:  # each is told at the line that says it
            place, where = line.removeprefix("warning: ").split(" ")[:2]
            assert where.rstrip("]:").split(".")[-1].split("[")[0] in lines[place]
        return code, [line.replace(f"{tmp_path / 'policy.yaml'}:", "") for line in told]

    yield check
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_name_that_is_no_tool_is_a_problem_of_the_policy(checked: Callable[..., tuple[int, list[str]]]) -> None:
    code, (told,) = checked("[deadlinemesh.tool_runner.builtin]", "[calculate, calcullate]")
    assert code == 2
    assert "tenants.acme.tools[1]: 'calcullate' is not a tool; one of " in told


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (MODULE.format(pattern="(a)\\1"), "has_tools:find"),
        (MODULE.format(pattern="^[ab]{0,4000}x"), "at most 2000"),
        (MODULE.format(pattern="a").replace('"""Find."""', "pass"), "has_tools:find: a tool needs a docstring"),
        ("", "has_tools has no tools: decorate functions with @tool"),
    ],
)
def test_a_function_that_a_tool_runner_refuses_is_a_problem_of_the_policy(
    checked: Callable[..., tuple[int, list[str]]], tmp_path: Path, source: str, reason: str
) -> None:
    (tmp_path / "has_tools.py").write_text(source)
    code, (told,) = checked("[deadlinemesh.tool_runner.builtin, has_tools]")
    assert code == 2
    assert "tools.modules[1]: " in told
    assert reason in told


def test_a_module_that_cannot_be_imported_here_is_a_warning_and_may_have_any_tool(
    checked: Callable[..., tuple[int, list[str]]],
) -> None:
    code, (told,) = checked("[deadlinemesh.tool_runner.builtin, acme_tools]", "[track_shipment]")
    assert code == 0
    assert "warning: " in told
    assert (
        "tools.modules[1]: acme_tools cannot be imported: ModuleNotFoundError: No module named 'acme_tools': " in told
    )


def test_what_a_module_prints_is_not_among_what_is_told_as_json(
    checked: Callable[..., tuple[int, list[str]]], tmp_path: Path
) -> None:
    (tmp_path / "has_tools.py").write_text(MODULE.format(pattern="a"))
    assert checked("[deadlinemesh.tool_runner.builtin, has_tools]") == (0, [])
    del sys.modules["has_tools"]
    assert json.loads(dmesh("policy", "check", "--json", str(tmp_path / "policy.yaml"))[1])["ok"] is True


def test_a_policy_that_can_be_read_only_once_is_checked(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(dmesh("policy", "show")[1],), daemon=True)
    writer.start()
    code, out, err = dmesh("policy", "check", str(pipe))
    writer.join()
    assert (code, err) == (0, "")
    assert out.startswith(f"{pipe}: OK: ")


def test_a_missing_policy_is_one_line(tmp_path: Path) -> None:
    code, _, err = dmesh("policy", "check", str(tmp_path / "none.yaml"))
    assert code == 2
    assert "cannot be read: No such file or directory" in err


def test_a_key_is_hashed_as_the_edge_does() -> None:
    assert dmesh("policy", "hash-key", typed="dm_acme_x\n")[1] == hash_key("dm_acme_x") + "\n"
    made = json.loads(dmesh("policy", "hash-key", "--tenant", "acme", "--json")[1])
    assert made["api_key"].startswith("dm_acme_")
    assert made["hash"] == hash_key(made["api_key"])
    assert dmesh("policy", "hash-key", typed="\n")[0] == 2


def test_a_key_that_is_to_be_typed_is_asked_for_beside_the_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = StringIO("dm_acme_x\n")
    monkeypatch.setattr(typed, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", typed)
    hash_a_key()
    out, err = capsys.readouterr()
    assert out == hash_key("dm_acme_x") + "\n"
    assert err == "the key to hash (--tenant NAME makes one): "


def result(holds: bool) -> dict[str, Any]:
    bar = {"what": "drift p99, ms", "measured": 1.25, "limit": 5.0, "holds": holds}
    return {"name": "fake", "repetitions": 3, "drift": {"p50_ms": 1.0}, "bars": [bar], "holds": holds}


@pytest.fixture
def fake_benches(monkeypatch: pytest.MonkeyPatch) -> None:
    async def good(options: Any) -> dict[str, Any]:
        return result(True) | {"repetitions": options.repetitions, "seed": options.seed}

    def bad(options: Any) -> dict[str, Any]:
        return result(False)

    monkeypatch.setattr(benches, "_registry", lambda: {"good": good, "bad": bad})
    report: Any = ModuleType("benchmarks.report")
    report.Options = lambda repetitions, seed: type("Options", (), {"repetitions": repetitions, "seed": seed})
    monkeypatch.setitem(sys.modules, "benchmarks.report", report)
    monkeypatch.setitem(sys.modules, "benchmarks", ModuleType("benchmarks"))


@pytest.mark.usefixtures("fake_benches")
def test_a_benchmark_is_run_and_its_promises_decide_the_exit_code() -> None:
    assert dmesh("bench", "--list")[1] == "good\nbad\n"
    code, out, _ = dmesh("bench", "good", "--json", "--repetitions", "3", "--seed", "5")
    assert code == 0
    assert json.loads(out)["seed"] == 5
    code, out, _ = dmesh("bench", "bad")
    assert code == 3
    assert "BROKEN" in out
    assert "drift.p50_ms" in out


def test_benchmarks_need_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(deadlinemesh, "__file__", str(tmp_path / "a" / "b" / "__init__.py"))
    code, _, err = dmesh("bench", "--list")
    assert code == 2
    assert "run this from a checkout" in err


def test_with_the_client_alone_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "typer" else found(name))
    with pytest.raises(SystemExit) as ended:
        deadlinemesh.cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert 'pip install "deadline-mesh[server]"' in said
    assert "missing: typer" in said


@pytest.mark.parametrize(
    ("service", "variables", "complaint"),
    [
        (
            "orchestrator",
            {},
            "DMESH_POOL: policy gives some tenants processes of their own, so clients call `dmesh serve edge`",
        ),
        ("orchestrator", {"DMESH_POOL": "acne"}, "DMESH_POOL: policy has no pool 'acne': one of acme, shared"),
        (
            "edge",
            {},
            "DMESH_DEDICATED: policy gives processes of their own to acme: name each one's orchestrator, as in",
        ),
        (
            "edge",
            {"DMESH_DEDICATED": "acme=localhost:1"},
            "DMESH_DEDICATED: write each pool's address as JSON, as in {",
        ),
        ("edge", {"DMESH_DEDICATED": '["acme"]'}, "DMESH_DEDICATED: write each pool's address as JSON"),
        ("edge", {"DMESH_DEDICATED": '{"acme": 50051}'}, "DMESH_DEDICATED: write each pool's address as JSON"),
        ("edge", {"DMESH_DEDICATED": '{"acme": ""}'}, "DMESH_DEDICATED: write each pool's address as JSON"),
        (
            "edge",
            {"DMESH_DEDICATED": '{"acme": "localhost:1", "shared": "localhost:2"}'},
            "DMESH_DEDICATED: shared is the pool of all others: DMESH_ORCHESTRATOR says where it is",
        ),
        (
            "edge",
            {"DMESH_DEDICATED": '{"acme": "localhost:1"}', "DMESH_ORCHESTRATOR": ""},
            "DMESH_ORCHESTRATOR: is empty, and policy has tenants that are not dedicated",
        ),
        ("edge", {"DMESH_CONNECTION_AGE_SECONDS": "-1"}, "DMESH_CONNECTION_AGE_SECONDS: "),
    ],
)
def test_a_pool_that_nobody_would_serve_is_told_before_anybody_calls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, service: str, variables: dict[str, str], complaint: str
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(dmesh("policy", "show")[1].replace("tier: enterprise", "tier: enterprise\n    dedicated: true"))
    for name, value in {"DMESH_MESH_TOKEN": "t", "DMESH_POLICY_FILE": str(policy), **variables}.items():
        monkeypatch.setenv(name, value)
    code, _, err = dmesh("serve", service)
    assert code == 2
    assert complaint in err


@pytest.mark.parametrize("what", ["traces", "metrics"])
def test_a_destination_that_is_none_is_told_before_anybody_calls(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setenv("DMESH_MESH_TOKEN", "t")
    monkeypatch.setenv(f"DMESH_{what.upper()}", "jaeger:6831")
    code, _, err = dmesh("serve", "llm-proxy")
    assert code == 2
    assert f"{what}: 'jaeger:6831' is not one of off, file:PATH, otlp" in err
