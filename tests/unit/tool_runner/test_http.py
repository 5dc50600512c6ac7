from __future__ import annotations

import asyncio
import gzip
import json
import random
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import unquote

import httpcore
import pytest

from deadlinemesh.deadline import SYSTEM_CLOCK, DeadlineContext, Scope, Scopes
from deadlinemesh.errors import Cause, ClientCancelled, DeadlineSpent
from deadlinemesh.policy.model import Policy
from deadlinemesh.tool_runner.kinds.cancelled_once import CANCELS_PASSED_OVER as CANCELS
from deadlinemesh.tool_runner.kinds.cancelled_once import cancelled_once
from deadlinemesh.tool_runner.registry import Registry
from deadlinemesh.transport import http_deadline
from deadlinemesh.transport.retry_after import retry_after
from deadlinemesh.vocabulary import ToolResult, ToolStatus


@dataclass
class Received:
    """A request as it came over the wire."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Upstream:
    """A raw HTTP server whose answers are bytes, and what it saw."""

    port: int = 0
    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    goes_on: bytes = b""
    """Follows an answer again and again, until the client has closed or far too much was sent."""
    sent_on: int = 0
    """Bytes that followed."""
    silent: bool = False
    """Whether it reads requests and never answers."""
    received: list[Received] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a request was read; a test clears it to wait for another."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a connection was closed by the client."""
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")
                method, target, _ = first.split(" ")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.received.append(Received(method, target, headers, body))
                self.arrived.set()
                if not self.silent:
                    writer.write(self.answer)
                    await writer.drain()
                while self.goes_on and self.sent_on < 32_000_000:
                    writer.write(self.goes_on)
                    await writer.drain()
                    self.sent_on += len(self.goes_on)
                if self.goes_on:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()
        finally:
            writer.close()


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    served = Upstream()
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    yield served
    server.close()


CANCELS_PASSED_OVER = 20.0
"""Seconds after which what should have happened long ago has failed to."""


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(CANCELS_PASSED_OVER):
        await event.wait()


class Begun:
    """A `Call` that knows whether it has begun."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()

    def begun(self) -> None:
        self.has_begun.set()

    async def progress(self, fraction: float, message: str = "") -> None:
        raise AssertionError("an HTTP tool has no progress")


Run = Callable[..., Awaitable[ToolResult]]


class Tools:
    """The HTTP tool `t` of a policy, at an upstream."""

    made: ClassVar[list[Tools]] = []

    def __init__(self, port: int, path: str = "/", *, connections: int = 10, **http: Any) -> None:
        policy = Policy.model_validate(
            {
                "tiers": {"free": {"run_budget": 30, "iterations": 2}},
                "tenants": {"acme": {"tier": "free", "api_keys": ["sha256:" + "0" * 64]}},
                "models": {"scripted": {"provider": "scripted"}},
                "tools": {
                    "modules": [],
                    "http": {"t": {"url": f"http://127.0.0.1:{port}{path}", "description": "T."} | http},
                    "connections_per_host": connections,
                },
            }
        )
        self.registry = Registry.from_policy(policy, environ={"KEY": "secret\n"})
        self.scopes = Scopes("tool-runner")
        self.made.append(self)

    def scope(self, seconds: float = 30.0) -> Scope:
        now = SYSTEM_CLOCK.monotonic()
        return self.scopes.open(DeadlineContext("acme", now + seconds, "free", "0" * 32, "run-1", now))

    async def call(self, scope: Scope | None = None, begun: Begun | None = None, **arguments: Any) -> ToolResult:
        tool, _ = self.registry.find("acme", "t")
        return await (scope or self.scope()).run(tool.run(arguments, begun or Begun()))


@pytest.fixture(autouse=True)
async def closing() -> AsyncIterator[None]:
    """Closes the tools that a test made."""
    yield
    while Tools.made:
        await Tools.made.pop().registry.aclose()


def wants(*names: str) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {} for name in names}, "required": list(names)}


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def test_a_get_fills_the_url_percent_encoded_and_sends_the_rest_as_the_query(upstream: Upstream) -> None:
    tools = Tools(upstream.port, "/a/{x}/b?fixed=1&q={q}", arguments=wants("x", "q"))
    found = await tools.call(x="ü?#%2e{q}", q="a&b", tags=["one", "two words"], flag=True, n=1.5, none=None, o={"k": 1})
    assert found == ToolResult(ToolStatus.OK, "ok")
    (request,) = upstream.received
    assert request.method == "GET"
    path, _, query = request.target.partition("?")
    assert path == "/a/%C3%BC%3F%23%252e%7Bq%7D/b"
    assert sorted(query.split("&")) == sorted(
        ["fixed=1", "q=a%26b", "tags=one", "tags=two+words", "flag=true", "n=1.5", "o=%7B%22k%22%3A1%7D"]
    )
    assert request.body == b""


async def test_a_post_sends_the_rest_as_a_json_body(upstream: Upstream) -> None:
    tools = Tools(upstream.port, "/a/{x}", method="POST", arguments=wants("x"))
    await tools.call(x=7, query="é", top_k=None)
    (request,) = upstream.received
    assert (request.method, request.target) == ("POST", "/a/7")
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.body) == {"query": "é", "top_k": None}


async def test_an_argument_cannot_change_what_the_url_says_in_its_query(upstream: Upstream) -> None:
    tools = Tools(upstream.port, "/search?area=public&key=&q={q}", arguments=wants("q"))
    for others in ({"area": "private"}, {"key": "x", "size": 3}, {"area": ["public", "private"]}, {"area": None}):
        found = await tools.call(q="a", **others)
        assert found.status is ToolStatus.INVALID_ARGUMENTS
        assert f"{next(iter(others))}: there is no such argument" in found.content
    assert upstream.received == []
    await tools.call(q="a", size=3)
    assert upstream.received[0].target == "/search?area=public&key=&q=a&size=3"


async def test_a_query_that_no_url_can_hold_is_told_as_wrong_arguments(upstream: Upstream) -> None:
    found = await Tools(upstream.port).call(x="a" * 70_000)
    assert (found.status, "too long" in found.content) == (ToolStatus.INVALID_ARGUMENTS, True)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_half_a_character_in_an_argument_does_not_fail_the_call(upstream: Upstream, method: str) -> None:
    arguments: dict[str, Any] = {"x": "a\ud83d", "n\ud83d": 1}
    found = await Tools(upstream.port, method=method).call(**arguments)
    assert found.status is ToolStatus.OK
    (request,) = upstream.received
    if method == "GET":
        assert request.target == "/?x=a%3F&n%3F=1"
    else:
        assert json.loads(request.body) == {"x": "a\ud83d", "n\ud83d": 1}


@pytest.mark.parametrize("x", ["", ".", ".."])
async def test_an_argument_cannot_lead_to_another_path(upstream: Upstream, x: str) -> None:
    found = await Tools(upstream.port, "/public/{x}", arguments=wants("x")).call(x=x)
    assert found.status is ToolStatus.INVALID_ARGUMENTS
    assert "x: must not be empty, '.' or '..'" in found.content
    assert upstream.received == []


async def test_arguments_cannot_make_up_another_path_together(upstream: Upstream) -> None:
    found = await Tools(upstream.port, "/a/.{x}", arguments=wants("x")).call(x="\u2024")
    assert found.status is ToolStatus.OK
    found = await Tools(upstream.port, "/a/{x}{y}/b", arguments=wants("x", "y")).call(x="..", y="z")
    assert found.status is ToolStatus.INVALID_ARGUMENTS


_ELSEWHERE = {
    "a slash": "../private/key.txt",
    "a backslash": "..\\private",
    "encoded": "%2e%2e%2Fprivate",
    "encoded twice": "%252e%252e%252fprivate",
    "encoded over and over": "%25252525252525252fprivate",
    "overlong": "%c0%ae%c0%ae%c0%afprivate",
    "utf-16": "%u002e%u002e%u002fprivate",
    "fullwidth": "．．／private",
    "fullwidth percent": "％2e％2e",
    "dots with a parameter": "..;v=1",
    "dots with a space": ".. ",
    "a control character": "a\r\nHost: b",
    "an encoded control character": "a%00.txt",
    "a list with a slash": ["a/../b"],
    "too long": "a" * 10_000,
}


@pytest.mark.parametrize("x", _ELSEWHERE.values(), ids=_ELSEWHERE)
@pytest.mark.parametrize("template", ["/public/{x}", "/public/{x:path}"])
async def test_no_form_of_an_argument_leaves_its_segment(upstream: Upstream, template: str, x: Any) -> None:
    found = await Tools(upstream.port, template, arguments=wants("x")).call(x=x)
    assert found.status is ToolStatus.INVALID_ARGUMENTS
    assert "- x: must not " in found.content
    assert len(found.content) < 300
    assert upstream.received == []


@pytest.mark.parametrize(("x", "y"), [("a%2", "fb"), ("%", "2e"), ("%5", "c"), ("a%", "00")])
async def test_arguments_spell_no_segment_together(upstream: Upstream, x: str, y: str) -> None:
    found = await Tools(upstream.port, "/a/{x}{y}/b", arguments=wants("x", "y")).call(x=x, y=y)
    assert found.status is ToolStatus.INVALID_ARGUMENTS
    assert "- x, y: together" in found.content
    assert upstream.received == []


async def test_harmless_arguments_go_through_as_they_are(upstream: Upstream) -> None:
    tools = Tools(upstream.port, "/a/{x}", arguments=wants("x"))
    for x in ("50% off", "a.b", "...", "ü", "a%20b", "x..y", "a;b", "\u2024"):
        assert (await tools.call(x=x)).status is ToolStatus.OK
    assert [unquote(request.target) for request in upstream.received][:3] == ["/a/50% off", "/a/a.b", "/a/..."]


async def test_a_path_argument_keeps_its_slashes(upstream: Upstream) -> None:
    tools = Tools(upstream.port, "/files/{x:path}/raw?of={y}", arguments=wants("x", "y"))
    assert (await tools.call(x="a b/c.txt", y="../d\n")).status is ToolStatus.OK
    (request,) = upstream.received
    assert request.target == "/files/a%20b/c.txt/raw?of=..%2Fd%0A"
    for x in ("/a", "a/", "a//b", "a/../b", "a/./b", "a%2fb", "a／b", "a/..;v=1/b", ""):
        assert (await tools.call(x=x, y="")).status is ToolStatus.INVALID_ARGUMENTS
    assert len(upstream.received) == 1


async def test_internal_services_are_told_the_shrinking_deadline(upstream: Upstream) -> None:
    await Tools(upstream.port, internal=True).call()
    (request,) = upstream.received
    told = http_deadline.decode(request.headers, time.time())
    assert told.remaining is not None
    assert 20 < told.remaining <= 30
    assert {"x-request-deadline", "x-request-timeout-ms"} <= set(request.headers)
    assert told.malformed == ()
    assert not told.skewed


async def test_third_parties_are_told_nothing_of_the_deadline(upstream: Upstream) -> None:
    await Tools(upstream.port, headers_env={"X-Key": "KEY"}).call()
    (request,) = upstream.received
    assert set(request.headers) == {"host", "accept", "accept-encoding", "connection", "user-agent", "x-key"}
    assert request.headers["x-key"] == "secret"


async def test_a_cookie_that_one_call_is_given_does_not_go_out_with_anothers(upstream: Upstream) -> None:
    upstream.answer = answer("200 OK", b"", Set_Cookie="session=acme; Path=/")
    tools = Tools(upstream.port)
    await tools.call()
    await tools.call()
    assert [request.headers.get("cookie") for request in upstream.received] == [None, None]


async def test_a_redirect_is_not_followed(upstream: Upstream) -> None:
    upstream.answer = answer("302 Found", b"over there", Location="http://169.254.169.254/")
    found = await Tools(upstream.port).call()
    assert found == ToolResult(ToolStatus.FAILED, "t failed: HTTP 302 Found: over there")
    assert len(upstream.received) == 1


@pytest.mark.parametrize(
    ("status", "transient"),
    [
        ("400 Bad Request", False),
        ("404 Not Found", False),
        ("408 Request Timeout", True),
        ("429 Too Many Requests", True),
        ("500 Internal Server Error", True),
        ("503 Service Unavailable", True),
    ],
)
async def test_a_failure_is_transient_where_trying_again_may_help(
    upstream: Upstream, status: str, transient: bool
) -> None:
    upstream.answer = answer(status, b"because")
    found = await Tools(upstream.port).call()
    assert found == ToolResult(ToolStatus.FAILED, f"t failed: HTTP {status}: because", transient)
    assert len(upstream.received) == 1  # no retry of its own


async def test_a_failure_tells_the_first_500_characters_of_its_body(upstream: Upstream) -> None:
    upstream.answer = answer("400 Bad Request", "é".encode() * 5000)
    assert (await Tools(upstream.port).call()).content == "t failed: HTTP 400 Bad Request: " + "é" * 500


async def test_retry_after_is_told_for_transient_failures_only(upstream: Upstream) -> None:
    upstream.answer = answer("429 Too Many Requests", b"", Retry_After="7")
    assert (await Tools(upstream.port).call()).retry_after == 7.0
    upstream.answer = answer("404 Not Found", b"", Retry_After="7")
    assert (await Tools(upstream.port).call()).retry_after is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "120"}, 120.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 -0000"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:27:00 GMT"}, 0.0),
        # Its own clock is an hour ahead of ours, and so are both dates.
        ({"retry-after": "Wed, 21 Oct 2026 08:28:10 GMT", "date": "Wed, 21 Oct 2026 08:28:00 GMT"}, 10.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "1e3"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 99 Oct 2026 07:28:30 GMT"}, None),
    ],
)
def test_retry_after_is_a_number_of_seconds_or_a_date(headers: Mapping[str, str], seconds: float | None) -> None:
    assert retry_after(headers, 1792567680.0) == seconds  # Wed, 21 Oct 2026 07:28:00 GMT


async def test_a_long_answer_is_cut_with_a_mark_and_not_read_to_its_end(upstream: Upstream) -> None:
    upstream.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + "é".encode() * 50_000
    found = await Tools(upstream.port, max_response_bytes=1001).call()
    assert found.content == "é" * 500 + "\n[cut: the answer is longer than 1001 bytes]"
    await soon(upstream.closed)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_an_answer_that_is_packed_unasked_is_unpacked_no_further_than_it_is_read(
    upstream: Upstream, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    upstream.answer = answer("200 OK", pack(b"abc" * 100_000), Content_Encoding=encoding)
    assert (await Tools(upstream.port).call()).content == "abc" * 100_000
    upstream.answer = answer("200 OK", pack(bytes(50_000_000)), Content_Encoding=encoding)
    tools = Tools(upstream.port, max_response_bytes=10)
    tracemalloc.start()
    try:
        assert (await tools.call()).content.startswith("\0" * 10 + "\n[cut")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    upstream.answer = answer("200 OK", b"not packed at all", Content_Encoding=encoding)
    assert "DecodingError" in (await tools.call()).content


def packed(body: bytes) -> bytes:
    """An answer's head without a length, and the beginning of its body: what may follow has no end."""
    return b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + body


NO_END_OF_ITS_NAME = b"\x1f\x8b\x08\x08" + bytes(5) + b"\x03"
EMPTY_BLOCKS = gzip.compress(b"")[:10] + b"\0\0\0\xff\xff" * 13_107


@pytest.mark.parametrize(
    ("begins", "goes_on", "found"),
    [
        (gzip.compress(b"found"), bytes(65_536), "found"),
        (gzip.compress(b"found"), gzip.compress(b"") * 3000, "found"),
        (NO_END_OF_ITS_NAME, b"n" * 65_536, "DecodingError: it unpacks"),
        (EMPTY_BLOCKS, b"\0\0\0\xff\xff" * 13_107, "DecodingError: it unpacks"),
    ],
    ids=["what-follows-the-end", "more-members", "a-name-without-end", "empty-blocks"],
)
async def test_of_a_packed_answer_that_goes_on_for_ever_and_unpacks_to_nothing_little_is_read(
    upstream: Upstream, begins: bytes, goes_on: bytes, found: str
) -> None:
    upstream.answer, upstream.goes_on = packed(begins), goes_on
    assert found in (await Tools(upstream.port, max_response_bytes=100_000).call()).content
    await soon(upstream.closed)
    assert upstream.sent_on < 16_000_000  # most of it lies in the sockets' buffers


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_packed_answer_that_breaks_off_is_not_taken_for_a_whole_one(
    upstream: Upstream, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    whole = pack(b"one, two, three")
    upstream.answer = answer("200 OK", whole[:-6], Content_Encoding=encoding)
    found = await Tools(upstream.port).call()
    assert (found.status, "breaks off" in found.content) == (ToolStatus.FAILED, True)
    upstream.answer = answer("200 OK", b"", Content_Encoding=encoding)
    assert await Tools(upstream.port).call() == ToolResult(ToolStatus.OK, "")


async def test_of_several_packed_members_the_first_is_the_answer_and_its_connection_is_used_again(
    upstream: Upstream,
) -> None:
    upstream.answer = answer("200 OK", gzip.compress(b"first") + gzip.compress(b"second"), Content_Encoding="gzip")
    tools = Tools(upstream.port)
    assert [(await tools.call()).content for _ in range(2)] == ["first", "first"]
    assert upstream.connections == 1


async def test_what_cannot_be_packed_any_smaller_is_read_up_to_its_limit(upstream: Upstream) -> None:
    body = random.Random(1).randbytes(1_000_000)
    upstream.answer = answer(
        "200 OK", gzip.compress(body), Content_Encoding="gzip", Content_Type="a/b; charset=latin-1"
    )
    assert (await Tools(upstream.port, max_response_bytes=1_000_000).call()).content == body.decode("latin-1")


async def test_an_answer_that_just_fits_is_not_cut(upstream: Upstream) -> None:
    upstream.answer = answer("200 OK", b"x" * 1001)
    assert (await Tools(upstream.port, max_response_bytes=1001).call()).content == "x" * 1001


@pytest.mark.parametrize("charset", ["latin-1", "zlib", "no-such-charset", "idna"])
async def test_a_charset_is_honoured_if_it_makes_text(upstream: Upstream, charset: str) -> None:
    upstream.answer = answer("200 OK", b"caf\xe9", Content_Type=f"text/plain; charset={charset}")
    assert (await Tools(upstream.port).call()).content == ("café" if charset == "latin-1" else "caf\ufffd")


@pytest.mark.parametrize("charset", ["punycode", "PunyCode"])
async def test_a_charset_whose_decoder_would_hold_the_event_loop_is_not_honoured(
    upstream: Upstream, charset: str
) -> None:
    upstream.answer = answer("200 OK", b"a-b", Content_Type=f"text/plain; charset={charset}")
    assert (await Tools(upstream.port).call()).content == "a-b"


async def test_half_a_character_where_an_answer_is_cut_is_left_out(upstream: Upstream) -> None:
    upstream.answer = answer("200 OK", "ab😀".encode())
    assert (await Tools(upstream.port, max_response_bytes=4).call()).content.startswith("ab\n[cut")


@pytest.mark.parametrize(("body", "text"), [(b"a\0b\0", "a\0b\0"), (b"\xff\xfea\0b\0", "ab")])
async def test_an_answer_that_contradicts_its_charset_is_still_an_answer(
    upstream: Upstream, body: bytes, text: str
) -> None:
    upstream.answer = answer("200 OK", body, Content_Type="text/plain; charset=utf-16")
    assert (await Tools(upstream.port).call()).content == text


async def test_a_refused_connection_is_a_transient_failure(unused_tcp_port: int) -> None:
    found = await Tools(unused_tcp_port).call()
    assert found.status is ToolStatus.FAILED
    assert found.content == "t failed: no answer: ConnectError"  # and not where it was
    assert found.transient


async def test_an_answer_that_breaks_off_is_a_transient_failure(upstream: Upstream) -> None:
    upstream.answer = b"nonsense\r\n\r\n"
    found = await Tools(upstream.port).call()
    assert found.status is ToolStatus.FAILED
    assert found.transient


async def test_a_cancel_closes_the_connection(upstream: Upstream) -> None:
    upstream.silent = True
    tools = Tools(upstream.port)
    scope = tools.scope()
    calling = asyncio.create_task(tools.call(scope))
    await soon(upstream.arrived)
    scope.stop(Cause.CLIENT_CANCELLED)
    with pytest.raises(ClientCancelled):
        await calling
    await soon(upstream.closed)


async def test_a_cancel_in_the_middle_of_an_answer_closes_the_connection(upstream: Upstream) -> None:
    upstream.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nthe beginning"
    tools = Tools(upstream.port)
    scope = tools.scope()
    calling = asyncio.create_task(tools.call(scope))
    await soon(upstream.arrived)
    scope.stop(Cause.CLIENT_CANCELLED)
    with pytest.raises(ClientCancelled):
        await calling
    await soon(upstream.closed)


async def cancelled_twice(task: asyncio.Task[Any], turns: int) -> None:
    """Cancel `task` twice, some turns of the event loop apart, and return when it has ended."""
    task.cancel()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("turns", range(8))
async def test_a_cancel_that_comes_again_at_any_moment_still_closes_the_connection(
    upstream: Upstream, turns: int
) -> None:
    upstream.silent = True
    calling = asyncio.create_task(Tools(upstream.port).call())
    await soon(upstream.arrived)
    await cancelled_twice(calling, turns)
    await soon(upstream.closed)


@pytest.mark.parametrize("turns", range(8))
async def test_an_exchange_is_cancelled_once_however_often_its_caller_is(turns: int) -> None:
    cancels, closed, began = 0, False, asyncio.Event()

    async def exchange() -> None:
        nonlocal cancels, closed
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            try:
                cancels += 1
                for _ in range(4):
                    await asyncio.sleep(0)
                closed = True
            except asyncio.CancelledError:
                cancels += 1
                raise

    calling = asyncio.create_task(cancelled_once(exchange()))
    await began.wait()
    await cancelled_twice(calling, turns)
    assert calling.cancelled()
    assert (cancels, closed) == (1, True)


async def test_an_exchange_that_ignores_its_cancel_is_cancelled_again_in_time() -> None:
    began = asyncio.Event()

    async def exchange() -> None:
        began.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    calling = asyncio.create_task(cancelled_once(exchange()))
    await began.wait()
    for _ in range(CANCELS + 1):
        assert not calling.done()
        calling.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([calling])
    assert calling.cancelled()


async def test_httpcore_leaves_a_connection_open_when_it_is_cancelled_again_while_it_closes(upstream: Upstream) -> None:
    """When this fails, httpcore is cured, and `cancelled_once.py` may go."""
    upstream.silent = True

    async def left_open_when_cancelled_again_after(turns: int) -> bool:
        upstream.arrived.clear()
        pool = httpcore.AsyncConnectionPool()
        calling = asyncio.create_task(pool.request("GET", f"http://127.0.0.1:{upstream.port}/"))
        await soon(upstream.arrived)
        await cancelled_twice(calling, turns)
        left = bool(pool.connections)
        await pool.aclose()
        return left

    assert any([await left_open_when_cancelled_again_after(turns) for turns in range(8)])


async def test_the_wait_for_a_connection_counts_in_the_deadline(upstream: Upstream) -> None:
    upstream.silent = True
    tools = Tools(upstream.port, connections=1)
    holder, begun = tools.scope(), Begun()
    holding = asyncio.create_task(tools.call(holder))
    await soon(upstream.arrived)
    with pytest.raises(DeadlineSpent):
        await tools.call(tools.scope(seconds=0.02), begun)
    assert not begun.has_begun.is_set()  # its time went while it waited, and nothing was sent
    assert len(upstream.received) == 1
    holder.stop(Cause.CLIENT_CANCELLED)
    with pytest.raises(ClientCancelled):
        await holding


async def test_a_slow_host_does_not_hold_the_connections_of_another(upstream: Upstream) -> None:
    slow = Upstream(silent=True)
    server = await asyncio.start_server(slow.serve, "127.0.0.1", 0)
    tools = Tools(upstream.port, connections=1)
    other = Tools(server.sockets[0].getsockname()[1], connections=1)
    scope = other.scope()
    waiting = asyncio.create_task(other.call(scope))
    await soon(slow.arrived)
    assert (await tools.call()).content == "ok"
    scope.stop(Cause.CLIENT_CANCELLED)
    with pytest.raises(ClientCancelled):
        await waiting
    server.close()


async def test_connections_are_used_again(upstream: Upstream) -> None:
    tools = Tools(upstream.port)
    for _ in range(3):
        await tools.call()
    assert upstream.connections == 1


async def test_calls_that_are_cancelled_in_the_same_instant_leave_no_connection_behind(upstream: Upstream) -> None:
    upstream.silent = True
    tools = Tools(upstream.port, connections=1)
    for _ in range(10):
        upstream.arrived.clear()
        scopes = [tools.scope() for _ in range(4)]
        calls = [asyncio.create_task(tools.call(scope)) for scope in scopes]
        await soon(upstream.arrived)
        for scope in scopes:
            scope.stop(Cause.DEADLINE_SPENT)
        await asyncio.wait(calls)
        assert all(isinstance(call.exception(), DeadlineSpent) for call in calls)
    upstream.silent = False
    assert (await tools.call()).content == "ok"


async def test_httpcore_1093_a_pool_that_queues_loses_connections_to_cancelled_requests(upstream: Upstream) -> None:
    """When this fails, httpcore is cured, and `connections.py` may leave the waiting to its pool."""
    upstream.silent = True

    async def lost_when_cancelled_after(turns: int) -> bool:
        upstream.arrived.clear()
        pool = httpcore.AsyncConnectionPool(max_connections=1)
        holding, queued = (
            asyncio.create_task(pool.request("GET", f"http://127.0.0.1:{upstream.port}/")) for _ in range(2)
        )
        await soon(upstream.arrived)
        holding.cancel()
        for _ in range(turns):  # in one of them the connection is assigned, but its request has not run yet
            await asyncio.sleep(0)
        queued.cancel()
        await asyncio.wait([holding, queued])
        lost = bool(pool.connections)
        await pool.aclose()
        return lost

    assert any([await lost_when_cancelled_after(turns) for turns in range(8)])
