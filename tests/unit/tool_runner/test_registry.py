from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from deadlinemesh.errors import InvalidRequest, NotFound
from deadlinemesh.policy.model import Policy
from deadlinemesh.tool_runner.registry import Registry

KEY = "sha256:" + "0" * 64
QUOTE: dict[str, Any] = {
    "url": "https://quotes.example/{symbol}",
    "description": "A quote.",
    "arguments": {"type": "object", "properties": {"symbol": {"type": "string"}}, "required": ["symbol"]},
}


def policy(tools: dict[str, Any] | None = None, tenants: dict[str, list[str]] | None = None) -> Policy:
    return Policy.model_validate(
        {
            "tiers": {"free": {"run_budget": 30, "iterations": 2}},
            "tenants": {
                name: {"tier": "free", "api_keys": [KEY], "tools": allowed}
                for name, allowed in (tenants or {"acme": []}).items()
            },
            "models": {"scripted": {"provider": "scripted"}},
            "tools": tools or {},
        }
    )


def violations(tools: dict[str, Any], tenants: dict[str, list[str]] | None = None, **environ: str) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as refused:
        Registry.from_policy(policy(tools, tenants), environ=environ)
    return {violation.field: violation.description for violation in refused.value.violations}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a module that can be imported during the test."""
    written: list[str] = []
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, source: str) -> str:
        (tmp_path / f"{name}.py").write_text("from deadlinemesh.tool_runner import tool\n" + source)
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


GREET = '@tool\nasync def greet(name: str) -> str:\n    """Greet."""\n    return name\n'


async def test_tools_come_from_modules_and_from_http_in_alphabetical_order() -> None:
    registry = Registry.from_policy(policy({"http": {"a_quote": QUOTE}}))
    assert [spec.name for spec in registry.specs("acme")] == [
        "a_quote",
        "calculate",
        "current_time",
        "long_task",
        "text_stats",
    ]


async def test_a_tenant_with_a_list_is_offered_no_other_tool_and_may_call_no_other() -> None:
    registry = Registry.from_policy(policy(tenants={"acme": ["calculate", "text_stats"], "globex": []}))
    assert [spec.name for spec in registry.specs("acme")] == ["calculate", "text_stats"]
    with pytest.raises(NotFound, match=r"'current_time'; one of calculate, text_stats$"):
        registry.find("acme", "current_time")
    assert registry.find("globex", "current_time")


async def test_an_unknown_tool_is_refused_with_the_names_of_the_known_ones() -> None:
    with pytest.raises(NotFound) as refused:
        Registry.from_policy(policy()).find("acme", "calculat")
    (violation,) = refused.value.violations
    assert violation.field == "name"
    assert violation.description.endswith("one of calculate, current_time, long_task, text_stats")


async def test_an_unknown_tenant_is_refused() -> None:
    with pytest.raises(NotFound, match=r"tenant_id: .* no tenant 'initech'"):
        Registry.from_policy(policy()).specs("initech")


async def test_a_name_that_is_taken_twice_is_refused_with_both_origins(module: Any) -> None:
    modules = [module("greetings", GREET), module("salutations", GREET)]
    assert violations({"modules": modules, "http": {"greet": {"url": "http://x", "description": "x"}}}) == {
        "tools.modules[1]": "the name 'greet' is taken twice: by greetings:greet and by salutations:greet",
        "tools.http.greet": "the name 'greet' is taken twice: by greetings:greet and by tools.http.greet",
    }


async def test_a_module_offers_its_own_tools_and_what_it_names_in_all_but_no_mere_imports(module: Any) -> None:
    module("greetings", GREET)
    mere = module("mere", "from greetings import greet\n")
    named = module("named", "from greetings import greet\n__all__ = ['greet']\n")
    assert "has no tools" in violations({"modules": [mere]})["tools.modules[0]"]
    registry = Registry.from_policy(policy({"modules": ["greetings", named]}))
    assert [spec.name for spec in registry.specs("acme")] == ["greet"]


async def test_a_module_that_cannot_be_imported_is_told_with_the_reason(module: Any) -> None:
    undocumented = module("undocumented", "@tool\nasync def silent() -> None:\n    pass\n")
    found = violations({"modules": ["no.such.module", undocumented]})
    assert "ModuleNotFoundError: No module named 'no'" in found["tools.modules[0]"]
    assert "TypeError: undocumented:silent: a tool needs a docstring" in found["tools.modules[1]"]


async def test_a_decorator_above_tool_is_told_at_start(module: Any) -> None:
    code = """
from functools import wraps
def logged(function):
    @wraps(function)
    async def wrapper(*args, **kwargs):
        return await function(*args, **kwargs)
    return wrapper
@logged
@tool
async def greet() -> None:
    \"\"\"Greet.\"\"\"
"""
    told = violations({"modules": [module("logged", code)]})["tools.modules[0]"]
    assert "logged:greet: what stands above @tool would be left out: put @tool above its other decorators" in told


async def test_a_module_that_exits_when_it_is_imported_does_not_take_the_process_with_it(module: Any) -> None:
    told = violations({"modules": [module("leaver", "import sys\nsys.exit('no licence')\n")]})
    assert told["tools.modules[0]"] == "leaver cannot be imported: SystemExit: no licence"


async def test_a_pattern_that_cannot_be_matched_in_linear_time_is_told_with_the_tool_and_the_property(
    module: Any,
) -> None:
    code = """
from typing import Annotated
from pydantic import Field
@tool
async def find(code: Annotated[str, Field(pattern="^[ab]{0,4000}x")]) -> None:
    \"\"\"Find.\"\"\"
"""
    http = {"quote": QUOTE | {"arguments": {"type": "object", "properties": {"x": {"pattern": "(?!a)"}}}}}
    found = violations({"modules": [module("patterned", code)], "http": http})
    assert found["tools.modules[0]"].startswith("the arguments of find (patterned:find): properties.code.pattern: ")
    assert "at most 2000" in found["tools.modules[0]"]
    assert found["tools.http.quote.arguments"].startswith(
        "properties.x.pattern: '(?!a)' is no pattern that is matched in "
    )


async def test_a_default_that_json_cannot_say_is_told_at_start_and_not_by_every_model_of_every_run(
    module: Any,
) -> None:
    code = '@tool\nasync def wait(most: float = float("inf")) -> None:\n    """Wait."""\n'
    assert violations({"modules": [module("endless", code)]})["tools.modules[0]"] == (
        "the arguments of wait (endless:wait): properties.most.default: inf is not JSON: write a finite number"
    )


async def test_a_plain_function_is_a_tool_like_any_other_and_needs_no_process_before_it_is_called(module: Any) -> None:
    mixed = module("mixed", GREET + '@tool\ndef block() -> None:\n    """Block."""\n')
    registry = Registry.from_policy(policy({"modules": [mixed]}))
    assert [spec.name for spec in registry.specs("acme")] == ["block", "greet"]
    await registry.aclose()


async def test_an_allow_list_may_only_name_tools_that_exist() -> None:
    found = violations({}, {"acme": ["calculate", "calcullate"]})
    assert list(found) == ["tenants.acme.tools[1]"]
    assert found["tenants.acme.tools[1]"].startswith("'calcullate' is not a tool; one of calculate,")


@pytest.mark.parametrize(
    ("changed", "field", "reason"),
    [
        ({"url": "https://quotes.example/{other}"}, "url", "{other} could be missing"),
        ({"arguments": {"type": "string"}}, "arguments", "are an object"),
        ({"headers_env": {"X-Key": "MISSING"}}, "headers_env.X-Key", "MISSING is not set"),
        ({"headers_env": {"X-Key": "BROKEN"}}, "headers_env.X-Key", "no header may have"),
    ],
)
async def test_an_http_tool_that_cannot_work_is_refused_at_start(changed: Any, field: str, reason: str) -> None:
    found = violations({"http": {"quote": QUOTE | changed}}, BROKEN="a\nb")
    assert reason in found[f"tools.http.quote.{field}"]


async def test_every_violation_is_told_not_only_the_first() -> None:
    tools = {"modules": ["nowhere"], "http": {"a": QUOTE | {"url": "http://x/{y}"}, "b": QUOTE | {"arguments": {}}}}
    assert list(violations(tools)) == [
        "tools.modules[0]",
        "tools.http.a.url",
        "tools.http.b.arguments",
        "tools.http.b.url",
    ]


async def test_closing_waits_for_the_calls_that_are_running() -> None:
    clients: list[httpx.AsyncClient] = []

    def client(_: Any) -> httpx.AsyncClient:
        clients.append(httpx.AsyncClient())
        return clients[0]

    registry = Registry.from_policy(policy(), http_client=client)
    with registry.in_use:
        closing = asyncio.create_task(registry.aclose())
        await asyncio.sleep(0)
        assert not closing.done()
        assert not clients[0].is_closed
    await closing
    assert clients[0].is_closed
