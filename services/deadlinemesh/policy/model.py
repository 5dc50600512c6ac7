"""The contents of a policy file, as frozen values that check themselves. Durations are in seconds.

The error text with the remedy is next to its type. An error never repeats a value that may be a
misplaced secret, such as a plain API key.
"""

from __future__ import annotations

import hashlib
import math
import re
from datetime import timedelta
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, StringConstraints

from deadlinemesh.admission import Share
from deadlinemesh.errors import shown

__all__ = [
    "PLACEHOLDER",
    "SHARED",
    "AdmissionPolicy",
    "HttpToolPolicy",
    "Limits",
    "ModelPolicy",
    "OpenAIModel",
    "Policy",
    "ScriptedModel",
    "TenantPolicy",
    "TierPolicy",
    "ToolsPolicy",
    "parse_duration",
    "url_arguments",
]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_-]*)(:path)?\}")
"""`{argument}` or `{argument:path}` in the URL of an HTTP tool."""
SHARED = "shared"
"""The pool of all tenants without dedicated processes. A pool is an orchestrator and its
tool-runner."""
_EMPTY_KEY = "sha256:" + hashlib.sha256(b"").hexdigest()


def parse_duration(value: Any) -> float:
    """Seconds from `250ms`, `30s`, `5m`, `1h` or a plain number of seconds.

    Raises ValueError with the valid forms.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is not None:
            return float(match[1]) * _UNITS[match[2]]
    except OverflowError:  # a whole number that is too large for a float
        pass
    raise ValueError(f"{shown(value)} is not a duration: write 250ms, 30s, 5m, 1h, or a number of seconds")


def url_arguments(url: str) -> tuple[str, ...]:
    """The names of the `{argument}` and `{argument:path}` parts of a tool's URL, in order."""
    return tuple(name for name, _ in PLACEHOLDER.findall(url))


def _form(pattern: str, right: str, *, secret: bool = False) -> AfterValidator:
    """A validator for texts of one form.

    `right` completes the error "... is not". With `secret` the error does not repeat the text.
    """
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if compiled.fullmatch(text) is None:
            raise ValueError(f"{'this' if secret else shown(text)} is not {right}")
        return text

    return AfterValidator(check)


def _not_of_nothing(hashed: str) -> str:
    # `printf "$KEY" | sha256sum` prints this hash while KEY is unset. It would let in every caller
    # without a key.
    if hashed == _EMPTY_KEY:
        raise ValueError("this is the hash of an empty key: hash the key itself, with `dmesh policy hash-key`")
    return hashed


def _not_of_the_mesh(name: str) -> str:
    if name.startswith("DMESH_"):
        raise ValueError("variables named DMESH_ are the mesh's own, and may hold its secrets: give tools others")
    return name


def _http_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an invalid port or IPv6 address
        right = False
    if not right or re.search(r"\s", url):
        raise ValueError("this is not an HTTP URL: write http://host:port/path or https://host/path")
    if "@" in parts.netloc:
        raise ValueError("this URL holds a user or a password: name an environment variable instead")
    return url


def _http_template(url: str) -> str:
    if re.search(r"[{}]", PLACEHOLDER.sub("", url)):
        raise ValueError("this URL has a stray brace: write each argument as {name}")
    if ":path}" in url.partition("?")[2]:
        raise ValueError("{name:path} is for the path: write {name} in the query")
    if re.search(r"%(?![0-9A-Fa-f]{2})", url.partition("?")[0]):
        raise ValueError("this URL's path has a stray '%': write %25 for a percent sign")
    if PLACEHOLDER.search(url.partition("://")[2].replace("?", "/").replace("#", "/").partition("/")[0]):
        raise ValueError("an argument cannot be part of the host: a model would choose whom the mesh calls")
    return _http_url(url)


_SET_BY_THE_MESH = {
    "model": "write it as `model`, beside extra_body",
    "messages": "they are the run's",
    "stream": "every answer is streamed, so that it can be cut",
    "stream_options": "the usage is asked for already",
    "n": "a turn has one answer",
    "tools": "they are the run's",
    "tool_choice": "it is the run's",
    "functions": "tools are offered as `tools`",
    "function_call": "tools are offered as `tools`",
    "max_tokens": "write max_output_tokens, beside extra_body",
    "max_completion_tokens": "write max_output_tokens, beside extra_body",
    "response_format": "write tools_by: json_schema, beside extra_body, if tools are to be chosen by it",
    "return_progress": "it is asked for already where tools_by is json_schema",
    "timeout": "the run's deadline is the only timeout",
}
"""Fields of a request's body that policy may not set, with the reason."""


def _free_field(name: str) -> str:
    if name in _SET_BY_THE_MESH:
        raise ValueError(f"is set by the mesh itself and cannot be passed on: {_SET_BY_THE_MESH[name]}")
    return name


def _json(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
        case list():
            return [_json(item) for item in value]
        case dict() if all(isinstance(key, str) for key in value):
            return {key: _json(item) for key, item in value.items()}
        case _:
            raise ValueError(
                f"{shown(value)} is not JSON: write texts, finite numbers, true, false, null, lists or mappings"
            )


Duration = Annotated[float, BeforeValidator(parse_duration), Field(ge=0, allow_inf_nan=False)]
PositiveDuration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0, allow_inf_nan=False)]
# Strict, because pydantic would read `iterations: yes` as 1. Floats count exactly only up to 2**53.
WholeNumber = Annotated[int, Strict(), Field(le=2**53)]
Flag = Annotated[bool, Strict()]
NonEmpty = Annotated[str, StringConstraints(min_length=1)]
Name = Annotated[
    str,
    _form(
        r"[a-z0-9][a-z0-9._-]{0,62}",
        "a name: write 1 to 63 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit",
    ),
]
ToolName = Annotated[
    str,
    _form(r"[a-z][a-z0-9_]{0,62}", "a tool's name: write 1 to 63 of a-z, 0-9 and '_', starting with a letter"),
]
HashedKey = Annotated[
    str,
    _form(
        r"sha256:[0-9a-f]{64}",
        "a hashed key: write sha256: and 64 hexadecimal digits, as `dmesh policy hash-key` prints them",
        secret=True,
    ),
    AfterValidator(_not_of_nothing),
]
EnvName = Annotated[
    str,
    _form(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable, such as CRM_TOKEN", secret=True),
]
ToolEnvName = Annotated[EnvName, AfterValidator(_not_of_the_mesh)]
EnvNameOrNone = Annotated[
    str,
    _form(r"([A-Za-z_][A-Za-z0-9_]*)?", "the name of an environment variable, such as OPENAI_API_KEY", secret=True),
]
HeaderName = Annotated[str, _form(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", "an HTTP header's name")]
BodyField = Annotated[str, AfterValidator(_free_field)]
JsonValue = Annotated[Any, AfterValidator(_json)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
HttpTemplate = Annotated[str, AfterValidator(_http_template)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TierPolicy(_Frozen):
    """A class of service: the time and the resources that a run of it may use."""

    run_budget: PositiveDuration
    """Seconds that a run may take. A run gets all of them if the client sets no deadline."""
    iterations: Annotated[WholeNumber, Field(ge=1)]
    """Model turns that a run may take."""
    tool_retries: Annotated[WholeNumber, Field(ge=0)] = 0
    """Attempts after the first, for each call of an idempotent tool and each model turn without
    output."""
    model_queue: Literal["normal", "priority"] = "normal"
    """The band in which its model calls wait for a slot."""
    weight: Annotated[WholeNumber, Field(ge=1)] = 1
    """Weight of its tenants in fair queues: a tenant with twice the weight gets twice the share."""
    calls_per_second: Annotated[WholeNumber, Field(ge=1)] = 500
    """Calls per second that the edge accepts from one tenant. Reads count too, and calls refused
    for other reasons. Each 64 KiB of a request or a large reply counts as one more."""
    burst: Annotated[WholeNumber, Field(ge=1)] = 1000
    """Calls that the edge accepts from one tenant at one instant, after a pause."""
    concurrent_calls: Annotated[WholeNumber, Field(ge=1)] = 500
    """Calls of one tenant at work at the same time."""
    request_bytes: Annotated[WholeNumber, Field(ge=1024)] | None = None
    """Bytes of the largest request. None: `limits.message_bytes`."""
    dedicated: Flag = False
    """True if the tier has a separate orchestrator and tool-runner, shared by its tenants."""


class TenantPolicy(_Frozen):
    """One customer."""

    tier: Name
    api_keys: Annotated[tuple[HashedKey, ...], Field(min_length=1)]
    """SHA-256 of each key, as `dmesh policy hash-key` prints it. The keys themselves are never
    stored."""
    models: tuple[Name, ...] = ()
    """Models that it may use. The first is its default. Empty: all, in the order of the file."""
    tools: tuple[ToolName, ...] = ()
    """Tools that it may use. Empty: all."""
    dedicated: Flag | None = None
    """True if it has an orchestrator and a tool-runner for itself, false if it uses the shared
    ones. None: its tier decides."""


class _Model(_Frozen):
    slots: Annotated[WholeNumber, Field(ge=1)] = 64
    """Turns that run at the same time. More turns wait in a fair queue."""
    max_output_tokens: Annotated[WholeNumber, Field(ge=1)] = 1024
    """Tokens that one turn may have."""
    longest_result: Annotated[WholeNumber, Field(ge=200)] = 24_000
    """Characters of a tool's result that the model reads. A longer result is shortened."""
    shortener: Name | None = None
    """The model that shortens longer results while there is time, for tenants that may use it. Else
    they are cut with a mark."""
    fallback: Name | None = None
    """The model that replaces this one for the rest of a run, if it fails or hangs before any
    output. Only for tenants that may use both."""


class ScriptedModel(_Model):
    """The embedded model: deterministic, seeded, without key or network."""

    provider: Literal["scripted"]
    first_token: Duration = 0.15
    """Seconds until the first token, the median."""
    per_token: Duration = 0.01
    """Seconds between two tokens, the median."""
    jitter: Annotated[float, Strict(), Field(ge=0, le=1)] = 0.2
    """Spread of both: the sigma of a lognormal factor with median 1. 0 makes them exact."""
    seed: WholeNumber = 0
    """Seed of texts and waits. The same seed and the same request give the same text and waits."""


class OpenAIModel(_Model):
    """A model behind an endpoint that speaks OpenAI's chat completions."""

    provider: Literal["openai"]
    base_url: HttpUrl = "https://api.openai.com/v1"
    model: NonEmpty
    """The provider's name for the model."""
    api_key_env: EnvNameOrNone = "OPENAI_API_KEY"
    """The environment variable of the key, read by the llm-proxy. Empty: the endpoint needs no
    key."""
    tools_by: Literal["native", "json_schema"] = "native"
    """The way to offer tools. `json_schema` is for models that ignore `tools`: it constrains the
    form of the answer instead."""
    context_tokens: Annotated[WholeNumber, Field(ge=256)] = 32768
    """Tokens of the model's context window. Histories are shortened to fit, old tool results
    first."""
    extra_body: dict[BodyField, JsonValue] = Field(default_factory=dict)
    """Further fields of every request's body, as the provider documents them."""


ModelPolicy = Annotated[ScriptedModel | OpenAIModel, Field(discriminator="provider")]


class HttpToolPolicy(_Frozen):
    """A tool that is an HTTP endpoint."""

    url: HttpTemplate
    """The URL. It may have `{argument}` parts after the host, filled in percent-encoded. A part
    `{argument:path}` may have several segments; it is allowed only in the path."""
    method: Literal["GET", "POST"] = "GET"
    """GET sends the other arguments as the query, POST as a JSON body."""
    description: NonEmpty
    """The tool's description, for a model."""
    arguments: dict[str, JsonValue] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    """JSON Schema of the arguments object."""
    idempotent: Flag = False
    """True if the tool may be retried. Set it only if a second call does no harm."""
    cache_for: Duration = 0.0
    """Seconds for which a result is reused for the same tenant and the same arguments. Only for
    idempotent tools. 0: never."""
    internal: Flag = False
    """True if the endpoint belongs to the operator. It then gets the deadline in X-Request-Deadline
    and X-Request-Timeout-Ms."""
    headers_env: dict[HeaderName, EnvName] = Field(default_factory=dict)
    """Header names, each with the environment variable of its value, read by the tool-runner."""
    max_response_bytes: Annotated[WholeNumber, Field(ge=1)] = 1_000_000
    """Bytes after which a response is cut, with a mark."""


class ToolsPolicy(_Frozen):
    """The sources of tools, and the resources of tool-runners."""

    modules: tuple[str, ...] = ("deadlinemesh.tool_runner.builtin",)
    """Python modules. Their functions decorated with `@tool` are offered."""
    http: dict[ToolName, HttpToolPolicy] = Field(default_factory=dict)
    """Tools that are HTTP endpoints, by name."""
    connections_per_host: Annotated[WholeNumber, Field(ge=1)] = 100
    """HTTP connections that one tool-runner opens to one host."""
    cache_bytes: Annotated[WholeNumber, Field(ge=0)] = 64 * 1024 * 1024
    """Bytes of cached results in one tool-runner's memory. 0: no results are cached."""
    cache_read_budget: PositiveDuration = 0.1
    """Seconds that a call may spend on the cache before it runs the tool. Less if little time
    remains."""
    cache_write_budget: PositiveDuration = 5.0
    """Seconds that the write of a result may take. It is background work and may outlive the
    run."""
    workers: Annotated[WholeNumber, Field(ge=1)] = 4
    """Processes of one tool-runner for plain functions. Each runs one call at a time."""
    calls_per_worker: Annotated[WholeNumber, Field(ge=1)] = 100
    """Calls after which a process is replaced."""
    worker_memory_bytes: Annotated[WholeNumber, Field(ge=1)] = 128 * 1024 * 1024
    """Bytes of memory after a call above which a process is replaced."""
    worker_environment: tuple[ToolEnvName, ...] = ()
    """The tool-runner's environment variables that plain functions see. Variables that every
    program needs, such as PATH, are always visible."""


class AdmissionPolicy(_Frozen):
    """The limits and shares of scarce resources. Service times are observed, not configured."""

    runs: Annotated[WholeNumber, Field(ge=1)] = 1000
    """Runs at the same time in one orchestrator."""
    most_waiting: Annotated[WholeNumber, Field(ge=0)] = 256
    """Waiters of one tenant in one fair queue. More are shed."""
    memory_bytes: Annotated[WholeNumber, Field(ge=1024)] = 128 * 1024 * 1024
    """Bytes that requests, running runs and replies being sent may hold in one orchestrator, copies
    included. More is shed. Together with the kept finished runs and the process itself they must
    fit into the process's memory."""
    memory_part: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.07
    """Share of `memory_bytes` that one tenant may hold."""
    normal_part: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.1
    """Share of the model slots that goes to waiting tiers of the normal queue while tiers of the
    priority queue wait too."""


class Limits(_Frozen):
    """Limits of calls, messages and runs, and of the finished runs that are kept."""

    shortest_run: PositiveDuration = 0.1
    """Seconds that a run must have. A run with less time is refused at once: it could do
    nothing."""
    response_reserve: PositiveDuration = 0.1
    """Seconds held back so that the answer arrives before the client's own timer fires."""
    message_bytes: Annotated[WholeNumber, Field(ge=1024)] = 4 * 1024 * 1024
    """Bytes of the largest message that a hop accepts."""
    longest_arguments: Annotated[WholeNumber, Field(ge=256)] = 131_072
    """Characters of one tool call's arguments, in a history or from a model."""
    tool_calls_per_turn: Annotated[WholeNumber, Field(ge=1)] = 64
    """Calls that a model may make in one turn. Further calls get a failed result. Twice as many
    calls end the turn."""
    run_bytes: Annotated[WholeNumber, Field(ge=64 * 1024)] = 8 * 1024 * 1024
    """Bytes of one run's events and answer. A larger run is stopped with a partial answer."""
    keep_finished_runs: Duration = 600.0
    """Seconds for which a finished run stays known to GetRun, ListRuns and its request id."""
    keep_runs_per_tenant: Annotated[WholeNumber, Field(ge=1)] = 1000
    """Finished runs that are kept for one tenant. The oldest is dropped first. Fewer are kept if
    they exceed `keep_part`."""
    keep_bytes: Annotated[WholeNumber, Field(ge=1)] = 64 * 1024 * 1024
    """Bytes of all finished runs in one orchestrator's memory. Runs of the tenant with the most
    bytes are dropped first."""
    keep_part: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.08
    """Share of `keep_bytes` that the runs of one tenant may take."""


class Policy(_Frozen):
    """A complete policy."""

    tiers: Annotated[dict[Name, TierPolicy], Field(min_length=1)]
    tenants: Annotated[dict[Name, TenantPolicy], Field(min_length=1)]
    models: Annotated[dict[Name, ModelPolicy], Field(min_length=1)]
    tools: ToolsPolicy = ToolsPolicy()
    admission: AdmissionPolicy = AdmissionPolicy()
    limits: Limits = Limits()
    instructions: str = (
        "You are a helpful assistant. Use the tools you are offered when they help, then answer briefly."
    )
    """The system prompt of runs without their own."""

    def shares(self, *, by_model_queue: bool = False) -> dict[str, Share]:
        """The share of each tier in fair queues.

        With `by_model_queue` the bands are those of the model queue. Else there is one band.
        """
        behind = {"priority": 0, "normal": 1}
        return {
            name: Share(tier.weight, behind[tier.model_queue] if by_model_queue else 0)
            for name, tier in self.tiers.items()
        }

    def pool_of(self, tenant_id: str) -> str:
        """The pool of the tenant: SHARED, its tier's (`tier:NAME`), or its own (its name)."""
        tenant = self.tenants[tenant_id]
        if tenant.dedicated is None:
            return f"tier:{tenant.tier}" if self.tiers[tenant.tier].dedicated else SHARED
        return tenant_id if tenant.dedicated else SHARED

    def pools(self) -> tuple[str, ...]:
        """The pools with at least one tenant. Only SHARED if no tenant is dedicated."""
        return tuple(dict.fromkeys(map(self.pool_of, self.tenants)))

    def models_of(self, tenant_id: str) -> tuple[str, ...]:
        """The models that the tenant may use. The first is its default."""
        return self.tenants[tenant_id].models or tuple(self.models)

    def shortener_of(self, tenant_id: str, model: str) -> str:
        """The model that shortens results for `model`.

        Empty if the tenant may use no such model.
        """
        shortener = self.models[model].shortener
        return shortener if shortener is not None and shortener in self.models_of(tenant_id) else ""

    def fallbacks_of(self, tenant_id: str, model: str) -> tuple[str, ...]:
        """The models that replace `model` one after the other.

        The chain ends before a model that the tenant may not use.
        """
        allowed, chain = self.models_of(tenant_id), [model]
        while (after := self.models[chain[-1]].fallback) is not None and after in allowed and after not in chain:
            chain.append(after)
        return tuple(chain[1:])
