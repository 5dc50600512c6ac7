"""A policy file is read whole, or refused with everything that is wrong with it and where."""

from __future__ import annotations

import string
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deadlinemesh.policy import (
    OpenAIModel,
    Policy,
    PolicyError,
    Problem,
    ScriptedModel,
    default_policy,
    load,
    parse,
    with_http_base,
)
from deadlinemesh.policy.model import parse_duration
from deadlinemesh.policy.problems import MOST_PROBLEMS

HASHES = ["sha256:" + digit * 64 for digit in "abc"]

GOOD = f"""\
tiers:
  free:
    run_budget: 30s
    iterations: 2
tenants:
  acme:
    tier: free
    api_keys: [{HASHES[0]}]
    models: [demo]
  bolt:
    tier: free
    api_keys: [{HASHES[1]}]
models:
  demo:
    provider: scripted
  gpt:
    provider: openai
    model: gpt-x
tools:
  http:
    lookup:
      url: http://127.0.0.1:8800/customers/{{customer}}
      description: Looks up a customer.
      arguments:
        type: object
        properties:
          customer:
            type: string
        required: [customer]
limits:
  response_reserve: 60ms
"""


def problems_of(text: str) -> list[tuple[int, str, str]]:
    with pytest.raises(PolicyError) as caught:
        parse(text, "policy.yaml")
    assert all(problem.file == "policy.yaml" for problem in caught.value.problems)
    return [(problem.line, problem.path, problem.reason) for problem in caught.value.problems]


def outcome_of(text: str) -> Policy | PolicyError:
    try:
        return parse(text, "policy.yaml")
    except PolicyError as error:
        return error


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, f"{old!r} should be there once"
    return GOOD.replace(old, new)


def test_a_sound_file_becomes_a_policy() -> None:
    policy = parse(GOOD, "policy.yaml")
    assert policy.tiers["free"].run_budget == 30
    assert policy.tenants["acme"].api_keys == (HASHES[0],)
    assert policy.models_of("acme") == ("demo",)
    assert policy.models_of("bolt") == ("demo", "gpt")
    assert isinstance(policy.models["demo"], ScriptedModel)
    assert isinstance(policy.models["gpt"], OpenAIModel)
    assert policy.tools.http["lookup"].method == "GET"
    assert policy.limits.response_reserve == pytest.approx(0.06)


DURATIONS = "write 250ms, 30s, 5m, 1h, or a number of seconds"
NOT_A_URL = "this is not an HTTP URL: write http://host:port/path or https://host/path"
TIER_FIELDS = (
    "one of run_budget, iterations, tool_retries, model_queue, weight, calls_per_second, burst, concurrent_calls, "
    "request_bytes, dedicated"
)
NOT_A_HASH = "this is not a hashed key: write sha256: and 64 hexadecimal digits, as `dmesh policy hash-key` prints them"

# What is replaced, by what, and the one problem that follows: its line, path and reason.
MISTAKES = [
    pytest.param(
        "30s", "30 sec", f"3: tiers.free.run_budget: '30 sec' is not a duration: {DURATIONS}", id="unit of a duration"
    ),
    pytest.param(
        " 30s", "", f"3: tiers.free.run_budget: an empty value is not a duration: {DURATIONS}", id="no duration"
    ),
    pytest.param(
        "30s", "yes", f"3: tiers.free.run_budget: true is not a duration: {DURATIONS}", id="flag for a duration"
    ),
    pytest.param("30s", "0", "3: tiers.free.run_budget: must be more than 0, not 0", id="no time"),
    pytest.param("30s", ".inf", "3: tiers.free.run_budget: inf is not a finite number", id="endless"),
    pytest.param(
        "iterations: 2",
        "iterations: two",
        "4: tiers.free.iterations: 'two' is not a whole number",
        id="text for a number",
    ),
    pytest.param(
        "iterations: 2", 'iterations: "2"', "4: tiers.free.iterations: '2' is not a whole number", id="quoted number"
    ),
    pytest.param(
        "iterations: 2",
        "iterations: yes",
        "4: tiers.free.iterations: true is not a whole number",
        id="flag for a number",
    ),
    pytest.param(
        "iterations: 2", "iterations: 2.5", "4: tiers.free.iterations: 2.5 is not a whole number", id="fraction"
    ),
    pytest.param("iterations: 2", "iterations: 0", "4: tiers.free.iterations: must be at least 1, not 0", id="too few"),
    pytest.param(
        "tools:\n  http:",
        "tools:\n  workers: 0\n  http:",
        "20: tools.workers: must be at least 1, not 0",
        id="no workers",
    ),
    pytest.param(
        "tools:\n  http:",
        "tools:\n  calls_per_workers: 5\n  http:",
        "20: tools.calls_per_workers: is not a field here; did you mean calls_per_worker? one of modules, http, "
        "connections_per_host, cache_bytes, cache_read_budget, cache_write_budget, workers, calls_per_worker, "
        "worker_memory_bytes, worker_environment",
        id="unknown field of tools",
    ),
    pytest.param("    iterations: 2\n", "", "2: tiers.free.iterations: is missing", id="missing field"),
    pytest.param(
        "iterations: 2",
        "iterations: 2\n    tool_retrys: 1",
        f"5: tiers.free.tool_retrys: is not a field here; did you mean tool_retries? {TIER_FIELDS}",
        id="unknown field near a known one",
    ),
    pytest.param(
        "iterations: 2",
        "iterations: 2\n    zzz: 1",
        f"5: tiers.free.zzz: is not a field here; {TIER_FIELDS}",
        id="unknown field near none",
    ),
    pytest.param(
        "limits:",
        "limit:",
        (
            "30: limit: is not a field here; did you mean limits? one of tiers, tenants, models, tools, admission, limits, "
            "instructions"
        ),
        id="unknown section",
    ),
    pytest.param(
        "scripted",
        "scripted\n    slotz: 1",
        (
            "16: models.demo.slotz: is not a field here; did you mean slots? one of slots, max_output_tokens, "
            "longest_result, shortener, fallback, "
            "provider, first_token, per_token, jitter, seed"
        ),
        id="unknown field of a model",
    ),
    pytest.param(
        "iterations: 2",
        "iterations: 2\n    model_queue: prioritty",
        "5: tiers.free.model_queue: 'prioritty' is not known; did you mean priority? one of normal, priority",
        id="unknown queue",
    ),
    pytest.param(
        "    tier: free\n    api_keys: [sha256:b",
        "    tier: Freee\n    api_keys: [sha256:b",
        "11: tenants.bolt.tier: 'Freee' is not a tier; did you mean free? one of free",
        id="unknown tier",
    ),
    pytest.param(
        "[demo]",
        "[gpt, dmeo]",
        "9: tenants.acme.models[1]: 'dmeo' is not a model; did you mean demo? one of demo, gpt",
        id="unknown model",
    ),
    pytest.param(
        "[demo]", "demo", "9: tenants.acme.models: must be a list such as [a, b], not a text", id="text for a list"
    ),
    pytest.param(
        "[demo]",
        "[demo]\n    tools: [5]",
        "10: tenants.acme.tools[0]: must be a text, not a number: put it in quotes",
        id="number for a text",
    ),
    pytest.param(
        HASHES[1],
        HASHES[0],
        (
            "12: tenants.bolt.api_keys[0]: is the same key as tenants.acme.api_keys[0]: a key belongs to one "
            "tenant, and is listed once"
        ),
        id="shared key",
    ),
    pytest.param(f"[{HASHES[1]}]", "[]", "12: tenants.bolt.api_keys: must not be empty", id="no key"),
    pytest.param(
        HASHES[1], "dm_bolt_secret", f"12: tenants.bolt.api_keys[0]: {NOT_A_HASH}", id="key that is not hashed"
    ),
    pytest.param(
        HASHES[1],
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        (
            "12: tenants.bolt.api_keys[0]: this is the hash of an empty key: hash the key itself, with `dmesh "
            "policy hash-key`"
        ),
        id="hash of nothing",
    ),
    pytest.param(
        "  bolt:",
        "  Bolt:",
        (
            "10: tenants.Bolt: 'Bolt' is not a name: write 1 to 63 of a-z, 0-9, '.', '_' and '-', starting with "
            "a letter or digit"
        ),
        id="name in capitals",
    ),
    pytest.param(
        "  bolt:", "  5:", "10: tenants.5: this key is read as a number: put it in quotes", id="number for a key"
    ),
    pytest.param(
        "  bolt:", "  no:", "10: tenants.no: this key is read as true or false: put it in quotes", id="flag for a key"
    ),
    pytest.param(
        "iterations: 2",
        "iterations: 2\n    run_budget: 40s",
        "5: tiers.free.run_budget: is given twice: the first is on line 3",
        id="duplicate key",
    ),
    pytest.param(
        "  bolt:", "  acme:", "10: tenants.acme: is given twice: the first is on line 6", id="duplicate tenant"
    ),
    pytest.param(
        "scripted",
        "antropic",
        "15: models.demo.provider: 'antropic' is not known; one of scripted, openai",
        id="unknown provider",
    ),
    pytest.param(
        "provider: openai",
        "provider: OpenAI",
        "17: models.gpt.provider: 'OpenAI' is not known; did you mean openai? one of scripted, openai",
        id="provider near a known one",
    ),
    pytest.param(
        "provider: scripted",
        "slots: 5",
        "14: models.demo.provider: is missing; one of scripted, openai",
        id="no provider",
    ),
    pytest.param("    model: gpt-x\n", "", "16: models.gpt.model: is missing", id="field of a provider"),
    pytest.param(
        "scripted", "scripted\n    jitter: 2", "16: models.demo.jitter: must be at most 1, not 2", id="jitter beyond"
    ),
    pytest.param("gpt-x", "gpt-x\n    base_url: ftp://x", f"19: models.gpt.base_url: {NOT_A_URL}", id="provider's URL"),
    pytest.param(
        "gpt-x",
        "gpt-x\n    api_key_env: sk-123",
        "19: models.gpt.api_key_env: this is not the name of an environment variable, such as OPENAI_API_KEY",
        id="secret for a variable",
    ),
    pytest.param(
        "gpt-x",
        "gpt-x\n    extra_body:\n      seed: 1\n      stream: false",
        (
            "21: models.gpt.extra_body.stream: is set by the mesh itself and cannot be passed on: every answer is "
            "streamed, so that it can be cut"
        ),
        id="a field of the body that the mesh sets",
    ),
    pytest.param(
        "gpt-x",
        "gpt-x\n    extra_body:\n      max_tokens: 5",
        (
            "20: models.gpt.extra_body.max_tokens: is set by the mesh itself and cannot be passed on: write "
            "max_output_tokens, beside extra_body"
        ),
        id="a field of the body that policy has a word for",
    ),
    pytest.param(
        "gpt-x",
        "gpt-x\n    extra_body:\n      top: {p: [.nan]}",
        (
            "20: models.gpt.extra_body.top: nan is not JSON: write texts, finite numbers, true, false, null, lists or "
            "mappings"
        ),
        id="what is not JSON in the body",
    ),
    pytest.param(
        "gpt-x",
        "gpt-x\n    extra_body: thinking",
        "19: models.gpt.extra_body: must be a mapping of keys to values, not a text",
        id="a body that has no fields",
    ),
    pytest.param(
        "  demo:\n    provider: scripted",
        "  demo: [1]\n",
        "14: models.demo: must be a mapping of keys to values, not a list",
        id="list for a mapping",
    ),
    pytest.param(
        "limits:\n  response_reserve: 60ms",
        "limits:",
        "30: limits: must be a mapping of keys to values, not empty",
        id="section without content",
    ),
    pytest.param("http://127.0.0.1:8800", "127.0.0.1:8800", f"22: tools.http.lookup.url: {NOT_A_URL}", id="tool's URL"),
    pytest.param("8800", "88000", f"22: tools.http.lookup.url: {NOT_A_URL}", id="tool's port"),
    pytest.param(
        "127.0.0.1:8800/customers/",
        "",
        ("22: tools.http.lookup.url: an argument cannot be part of the host: a model would choose whom the mesh calls"),
        id="host as an argument",
    ),
    pytest.param(
        "127.0.0.1:8800",
        "me:secret@127.0.0.1",
        "22: tools.http.lookup.url: this URL holds a user or a password: name an environment variable instead",
        id="password in a URL",
    ),
    pytest.param(
        "{customer}",
        "{customer",
        "22: tools.http.lookup.url: this URL has a stray brace: write each argument as {name}",
        id="stray brace",
    ),
    pytest.param(
        "{customer}",
        "orders?of={customer:path}",
        "22: tools.http.lookup.url: {name:path} is for the path: write {name} in the query",
        id="a path in the query",
    ),
    pytest.param(
        "{customer}",
        "100%/{customer:path}",
        "22: tools.http.lookup.url: this URL's path has a stray '%': write %25 for a percent sign",
        id="stray percent",
    ),
    pytest.param(
        "{customer}",
        "{customer}/{order}",
        "22: tools.http.lookup.url: {order} is no argument; declare it in arguments.properties",
        id="undeclared argument",
    ),
    pytest.param(
        "        required: [customer]\n",
        "",
        "22: tools.http.lookup.url: {customer} could be missing from a call; list it in arguments.required",
        id="optional argument in the URL",
    ),
    pytest.param(
        "type: string",
        "type: strin",
        (
            "28: tools.http.lookup.arguments.properties.customer.type: is not valid JSON Schema: 'strin' is not "
            "a JSON Schema type; did you mean string? one of array, boolean, integer, null, number, object, "
            "string"
        ),
        id="JSON Schema's type",
    ),
    pytest.param(
        "type: string",
        'type: string\n            pattern: "["',
        (
            "29: tools.http.lookup.arguments.properties.customer.pattern: '[' is no pattern that is matched in linear "
            "time: unclosed character class; write it in the syntax of RE2, which has neither look-around nor "
            "backreferences"
        ),
        id="JSON Schema's pattern",
    ),
    pytest.param(
        "type: string",
        'type: string\n            pattern: "^(?!x)"',
        (
            "29: tools.http.lookup.arguments.properties.customer.pattern: '^(?!x)' is no pattern that is matched in "
            "linear time: look-around, including look-ahead and look-behind, is not supported; write it in the syntax "
            "of RE2, which has neither look-around nor backreferences"
        ),
        id="a pattern that needs backtracking",
    ),
    pytest.param(
        "type: string",
        'type: object\n            patternProperties: {"[ab]{0,4000}x": {type: string}}',
        (
            "29: tools.http.lookup.arguments.properties.customer.patternProperties.[ab]{0,4000}x: '[ab]{0,4000}x' is "
            "4001 characters long with its counts written out, and at most 2000 are matched: write * or + for long "
            "counts, and maxLength beside the pattern"
        ),
        id="a pattern with long counts",
    ),
    pytest.param(
        "type: string",
        "type: string\n            maximum: .inf",
        (
            "27: tools.http.lookup.arguments.properties: inf is not JSON: write texts, finite numbers, true, false, null, "
            "lists or mappings"
        ),
        id="what is not JSON in a JSON Schema",
    ),
    pytest.param(
        "type: object",
        "type: array",
        "25: tools.http.lookup.arguments.type: must be object: a tool's arguments have names",
        id="arguments without names",
    ),
    pytest.param(
        "        type: object\n",
        "",
        "24: tools.http.lookup.arguments.type: must be object: a tool's arguments have names",
        id="arguments without a type",
    ),
    pytest.param(
        "description:",
        "method: PUT\n      description:",
        "23: tools.http.lookup.method: 'PUT' is not known; one of GET, POST",
        id="method",
    ),
    pytest.param(
        "description:",
        "idempotent: 1\n      description:",
        "23: tools.http.lookup.idempotent: 1 is not true or false",
        id="text for a flag",
    ),
    pytest.param(
        "description:",
        "cache_for: 5m\n      description:",
        "23: tools.http.lookup.cache_for: only an idempotent tool's results may be kept: say idempotent: true, or leave "
        "cache_for out",
        id="kept though not idempotent",
    ),
    pytest.param(
        "provider: scripted",
        "provider: scripted\n    fallback: gtp",
        "16: models.demo.fallback: 'gtp' is not a model; did you mean gpt? one of demo, gpt",
        id="unknown fallback",
    ),
    pytest.param(
        "model: gpt-x",
        "model: gpt-x\n    fallback: gpt",
        "19: models.gpt.fallback: leads back to where it began, from gpt to gpt: the last model of a chain has no fallback",
        id="fallback to itself",
    ),
    pytest.param(
        "description:",
        "cache_for: soon\n      idempotent: true\n      description:",
        "23: tools.http.lookup.cache_for: 'soon' is not a duration: write 250ms, 30s, 5m, 1h, or a number of seconds",
        id="kept for no duration",
    ),
    pytest.param(
        "Looks up a customer.", '""', "23: tools.http.lookup.description: must not be empty", id="empty description"
    ),
    pytest.param(
        "30s",
        "160ms",
        (
            "3: tiers.free.run_budget: a run of 0.16 s could do nothing: write more than 0.16 s, the sum of "
            "limits.shortest_run (0.1 s) and limits.response_reserve (0.06 s)"
        ),
        id="budget below the reserves",
    ),
    pytest.param(
        "60ms",
        "1m",
        (
            "3: tiers.free.run_budget: a run of 30 s could do nothing: write more than 60.1 s, the sum of "
            "limits.shortest_run (0.1 s) and limits.response_reserve (60 s)"
        ),
        id="budget below raised reserves",
    ),
    pytest.param(
        "30s",
        "!seconds 30",
        "3: tiers.free.run_budget: the tag !seconds is refused: write the plain value",
        id="tag of a value",
    ),
    pytest.param(
        "  response_reserve: 60ms",
        "  response_reserve: !!python/object/apply:os.getcwd []",
        ("31: limits.response_reserve: the tag !!python/object/apply:os.getcwd is refused: write the plain value"),
        id="tag that runs code",
    ),
    pytest.param(
        "iterations: 2",
        "iterations: !!int x",
        "4: tiers.free.iterations: cannot be read as a number",
        id="value against its tag",
    ),
]


def test_fallbacks_that_go_round_are_told_at_each_of_them() -> None:
    text = changed("provider: scripted", "provider: scripted\n    fallback: gpt")
    text = text.replace("model: gpt-x", "model: gpt-x\n    fallback: demo")
    assert [(line, path) for line, path, _ in problems_of(text)] == [
        (16, "models.demo.fallback"),
        (20, "models.gpt.fallback"),
    ]


@pytest.mark.parametrize("last", ["m0", "none"])
def test_thousands_of_models_are_judged_at_once(last: str) -> None:
    names = [f"m{number}" for number in range(2500)]
    models = "".join(f"  {a}: {{fallback: {b}}}\n" for a, b in zip(names, [*names[1:], last], strict=True))
    began = time.process_time()
    with pytest.raises(PolicyError) as caught:
        parse(f"models:\n{models}tenants:\n  acme: {{models: [{', '.join(name + 'x' for name in names)}]}}\n", "policy")
    assert time.process_time() - began < 5  # it took 48 s for the circle alone
    assert len(caught.value.problems) == MOST_PROBLEMS + 1
    assert len(str(caught.value)) < 50_000
    assert "more than 100 problems" in caught.value.problems[-1].reason


def test_a_model_falls_back_only_to_what_the_tenant_may_use() -> None:
    policy = parse(changed("provider: scripted", "provider: scripted\n    fallback: gpt"), "policy.yaml")
    assert policy.fallbacks_of("acme", "demo") == ()
    assert policy.fallbacks_of("bolt", "demo") == ("gpt",)
    assert policy.fallbacks_of("bolt", "gpt") == ()


@pytest.mark.parametrize(("old", "new", "problem"), MISTAKES)
def test_a_mistake_is_told_with_its_line_and_what_would_be_right(old: str, new: str, problem: str) -> None:
    assert [f"{line}: {path}: {reason}" for line, path, reason in problems_of(changed(old, new))] == [problem]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", 1, "is empty: a policy has at least tiers, tenants and models"),
        ("# nothing yet\n", 1, "is empty: a policy has at least tiers, tenants and models"),
        ("[tiers]", 1, "must be a mapping of keys to values, not a list"),
        ("tiers:\n  free: [\n", 3, "cannot be read as YAML: while parsing a flow node, expected the node content"),
        ("tiers:\n\tfree: 1", 2, "cannot be read as YAML: while scanning for the next token, found character '\\t'"),
        ("tiers: 1\n\x07", 2, "cannot be read as YAML: the character U+0007 is not allowed"),
        ('tiers: 1\nx: "\\UFFFFFFFF"', 2, "cannot be read as YAML: an escape names no character"),
        ("a: 1\n---\nb: 1", 2, "cannot be read as YAML: expected a single document in the stream"),
        ("a: &x [1]\nb: *x", 2, "the alias *x is refused: write the value out"),
        ("a: &x [*x]", 1, "the alias *x is refused: write the value out"),
        ("a:\n  " + "[" * 33, 2, "cannot be read as YAML: values are nested more than 32 deep"),
        ("[" * 1024 * 1024, 1, "cannot be read as YAML: values are nested more than 32 deep"),
        ("#" * (1024 * 1024 + 1), 0, "is larger than 1 MiB: no policy is"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_text_that_is_no_policy_at_all_is_refused_with_a_reason(text: str, line: int, reason: str) -> None:
    ((found_line, path, found_reason),) = problems_of(text)
    assert (found_line, path) == (line, "")
    assert found_reason.startswith(reason)


@pytest.mark.parametrize(
    "name",
    [
        "model",
        "messages",
        "stream",
        "stream_options",
        "n",
        "tools",
        "tool_choice",
        "max_tokens",
        "max_completion_tokens",
        "response_format",
        "timeout",
    ],
)
def test_what_the_mesh_itself_sets_of_a_request_is_not_passed_on(name: str) -> None:
    text = changed("gpt-x", f"gpt-x\n    extra_body: {{{name}: 1}}")
    ((line, path, reason),) = problems_of(text)
    assert (line, path) == (19, f"models.gpt.extra_body.{name}")
    assert reason.startswith("is set by the mesh itself and cannot be passed on: ")


def test_what_a_provider_needs_besides_is_kept_as_it_is_written() -> None:
    extra = "{chat_template_kwargs: {enable_thinking: false}, seed: 7, stop: [a, null], top_p: 0.5}"
    model = parse(changed("gpt-x", f"gpt-x\n    extra_body: {extra}"), "p.yaml").models["gpt"]
    assert isinstance(model, OpenAIModel)
    assert model.extra_body == {
        "chat_template_kwargs": {"enable_thinking": False},
        "seed": 7,
        "stop": ["a", None],
        "top_p": 0.5,
    }


def test_aliases_that_would_unfold_to_billions_of_values_are_refused_one_by_one() -> None:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    assert [line for line, _, _ in problems_of("\n".join(lines))] == [n for n in range(2, 11) for _ in range(9)]


def test_all_problems_are_told_at_once_in_the_order_of_their_lines() -> None:
    text = f"""\
tiers:
  free:
    run_budget: soon
    iterations: 0
    iterations: 3
  small: {{run_budget: 1ms, iterations: 1}}
tenants:
  acme:
    tier: gold
    api_key: [{HASHES[0]}]
  bolt:
    tier: free
    api_keys:
      - {HASHES[0]}
      - {HASHES[0]}
    models:
      - demo
      - nemo
models:
  demo:
    provider: antropic
tools:
  http:
    lookup:
      url: http://crm/{{id}}
      description: Looks up.
      arguments: {{type: object, properties: []}}
"""
    with pytest.raises(PolicyError) as caught:
        parse(text, "etc/policy.yaml")
    assert [(problem.line, problem.path) for problem in caught.value.problems] == [
        (3, "tiers.free.run_budget"),
        (4, "tiers.free.iterations"),
        (5, "tiers.free.iterations"),
        (6, "tiers.small.run_budget"),
        (8, "tenants.acme.api_keys"),
        (9, "tenants.acme.tier"),
        (10, "tenants.acme.api_key"),
        (15, "tenants.bolt.api_keys[1]"),
        (18, "tenants.bolt.models[1]"),
        (21, "models.demo.provider"),
        (25, "tools.http.lookup.url"),
        (27, "tools.http.lookup.arguments.properties"),
    ]
    assert str(caught.value).splitlines()[5] == (
        "etc/policy.yaml:9: tenants.acme.tier: 'gold' is not a tier; one of free, small"
    )
    assert len(str(caught.value).splitlines()) == len(caught.value.problems)


@pytest.mark.parametrize(
    "new",
    ["dm_bolt_hunter2", "'dm_bolt_hunter2 '", "sha256:hunter2", "{dm: hunter2}", "[hunter2]", "!key hunter2"],
)
def test_a_plain_key_in_the_file_is_never_repeated_in_an_error(new: str) -> None:
    for old in (HASHES[1], f"[{HASHES[1]}]"):
        assert not any("hunter2" in reason for _, _, reason in problems_of(changed(old, new)))


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("p.yaml", 4, "tenants.acme.tier", "is missing"), "p.yaml:4: tenants.acme.tier: is missing"),
        (Problem("p.yaml", 1, "", "is empty"), "p.yaml:1: is empty"),
        (Problem("p.yaml", 0, "", "cannot be read"), "p.yaml: cannot be read"),
        (Problem("p.yaml", 2, "tiers.a\nb", "is missing"), "p.yaml:2: tiers.a\\nb: is missing"),
    ],
)
def test_a_problem_prints_as_one_line_that_editors_can_follow(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_a_file_is_loaded_under_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("\ufeff" + GOOD, "utf-8")  # some editors put a byte order mark
    assert load(path) == parse(GOOD, "policy.yaml")
    path.write_text("tiers: 5")
    with pytest.raises(PolicyError, match=r"policy\.yaml:1: tiers: must be a mapping") as caught:
        load(path)
    assert {problem.file for problem in caught.value.problems} == {str(path)}


def test_a_file_that_cannot_be_read_is_a_policy_error_without_a_line(tmp_path: Path) -> None:
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (1024 * 1024 + 1))
    for path, reason in [
        (tmp_path / "none.yaml", "cannot be read: No such file or directory"),
        (tmp_path, "cannot be read: Is a directory"),
        (big, "is larger than 1 MiB: no policy is"),
    ]:
        with pytest.raises(PolicyError) as caught:
            load(path)
        assert str(caught.value) == f"{path}: {reason}"


def test_bytes_that_are_not_text_are_told_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"tiers:\n  \xff\xfe: 1\n")
    with pytest.raises(PolicyError) as caught:
        load(path)
    assert caught.value.problems == (Problem(str(path), 2, "", "is not UTF-8 text"),)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("250ms", 0.25), ("30s", 30), ("1.5m", 90), ("1h", 3600), (" 2 s ", 2), (7, 7), (0.5, 0.5)],
)
def test_a_duration_is_read_in_seconds(written: str | float, seconds: float) -> None:
    assert parse_duration(written) == pytest.approx(seconds)


@given(st.text() | st.text(string.digits + ".smh -e_") | st.integers() | st.floats() | st.booleans() | st.none())
def test_whatever_stands_for_a_duration_is_a_number_of_seconds_or_refused_in_words(value: object) -> None:
    refusal = ""
    try:
        assert isinstance(parse_duration(value), float)
    except ValueError as error:
        refusal = str(error)
    assert not refusal or refusal.endswith(f"is not a duration: {DURATIONS}")


@given(st.text() | st.text("ab:-[]{}!&*?|>'\"%@`#, \n\t0~<=\\"))
def test_any_text_is_a_policy_or_a_policy_error(text: str) -> None:
    with pytest.raises(PolicyError):
        parse(text, "policy.yaml")


@given(st.data())
def test_a_good_file_with_something_cut_out_or_typed_over_is_a_policy_or_a_policy_error(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(GOOD)))
    end = data.draw(st.integers(start, min(len(GOOD), start + 40)))
    typed = data.draw(st.text("a5:-[]{}!&*'\"#, \n~", max_size=4))
    text = GOOD[:start] + typed + GOOD[end:]
    outcome = outcome_of(text)
    if isinstance(outcome, PolicyError):
        assert outcome.problems
        assert all(0 < problem.line <= text.count("\n") + 1 for problem in outcome.problems)


def test_the_embedded_policy_has_the_tiers_of_the_design() -> None:
    tiers = default_policy().tiers
    assert {name: (t.run_budget, t.iterations, t.tool_retries, t.model_queue) for name, t in tiers.items()} == {
        "free": (30, 2, 0, "normal"),
        "professional": (120, 5, 1, "normal"),
        "enterprise": (300, 10, 2, "priority"),
    }


def test_the_embedded_policy_has_a_tenant_of_each_tier_and_needs_no_network() -> None:
    policy = default_policy()
    assert {name: tenant.tier for name, tenant in policy.tenants.items()} == {
        "acme": "enterprise",
        "bolt": "professional",
        "cora": "free",
    }
    assert list(policy.models) == ["demo", "fast"]
    assert all(isinstance(model, ScriptedModel) for model in policy.models.values())
    assert {name: (tool.method, tool.internal, tool.idempotent) for name, tool in policy.tools.http.items()} == {
        "crm_lookup": ("GET", True, True),
        "vector_search": ("POST", True, True),
        "market_data": ("GET", False, True),
        "portfolio_report": ("GET", True, True),
    }


def test_a_change_of_address_moves_only_the_tools_that_are_there() -> None:
    policy = default_policy()
    moved = with_http_base(policy, "http://127.0.0.1:8800/", "https://world.example:9443")
    assert moved.tools.http["crm_lookup"].url == "https://world.example:9443/crm/customers/{customer}"
    assert all(tool.url.startswith("https://world.example:9443/") for tool in moved.tools.http.values())
    assert policy == default_policy()
    assert with_http_base(policy, "http://127.0.0.1:880", "http://elsewhere") == policy


def test_a_change_to_something_that_is_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="not an HTTP URL"):
        with_http_base(default_policy(), "http://127.0.0.1:8800", "nowhere")


def dedicated(tier: str = "", acme: str = "", bolt: str = "") -> str:
    """GOOD with these values of `dedicated`."""
    text = GOOD
    for before, value in (("    iterations: 2\n", tier), (f"[{HASHES[0]}]\n", acme), (f"[{HASHES[1]}]\n", bolt)):
        text = text.replace(before, f"{before}    dedicated: {value}\n") if value else text
    return text


@pytest.mark.parametrize(
    ("values", "acme", "bolt"),
    [
        ({}, "shared", "shared"),
        ({"acme": "true"}, "acme", "shared"),
        ({"tier": "true"}, "tier:free", "tier:free"),
        ({"tier": "true", "bolt": "false"}, "tier:free", "shared"),
        ({"tier": "true", "acme": "true"}, "acme", "tier:free"),
    ],
)
def test_what_a_tenant_says_of_its_processes_is_more_than_what_its_tier_says(
    values: dict[str, str], acme: str, bolt: str
) -> None:
    policy = parse(dedicated(**values), "policy.yaml")
    assert (policy.pool_of("acme"), policy.pool_of("bolt")) == (acme, bolt)
    assert policy.pools() == tuple(dict.fromkeys((acme, bolt)))


@pytest.mark.parametrize("value", ["mostly", "1", "[true]"])
def test_whether_somebody_is_dedicated_is_true_or_false(value: str) -> None:
    with pytest.raises(PolicyError) as refused:
        parse(dedicated(tier=value, acme=value), "policy.yaml")
    assert [problem.path for problem in refused.value.problems] == ["tiers.free.dedicated", "tenants.acme.dedicated"]
    assert all(problem.reason.endswith("is not true or false") for problem in refused.value.problems)


def test_a_dedicated_tenant_is_not_called_as_the_pool_of_all_others() -> None:
    with pytest.raises(PolicyError, match=r"tenants\.shared\.dedicated: shared is the name of the pool of all others"):
        parse(dedicated(acme="true").replace("  acme:", "  shared:"), "policy.yaml")


def test_the_embedded_policy_dedicates_nothing() -> None:
    assert default_policy().pools() == ("shared",)


def test_an_argument_cannot_be_declared_that_the_url_gives_a_value() -> None:
    declared = GOOD.replace("          customer:\n", "          kind: {type: string}\n          customer:\n")
    text = declared.replace("{customer}\n", "{customer}?kind=all\n")
    reason = "the URL says what kind is: write kind={kind} there, or leave this argument out"
    assert problems_of(text) == [(27, "tools.http.lookup.arguments.properties.kind", reason)]
    for right in (
        text.replace("kind=all", "kind={kind}").replace("[customer]", "[customer, kind]"),
        text.replace("kind=all\n", "kind=all\n      method: POST\n"),
    ):
        assert parse(right, "policy.yaml")
