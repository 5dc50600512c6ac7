"""Tools that are HTTP endpoints.

There are no timeouts and no retries here. The deadline ends the call, and that closes the
connection. The orchestrator decides about retries.
"""

from __future__ import annotations

import codecs
import json
import logging
import time
import zlib
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import httpx

from deadlinemesh.deadline import current
from deadlinemesh.policy.model import HttpToolPolicy
from deadlinemesh.telemetry.logs import cut
from deadlinemesh.tool_runner.kinds.cancelled_once import cancelled_once
from deadlinemesh.tool_runner.kinds.connections import OriginConnections
from deadlinemesh.tool_runner.kinds.url import UnfitArgument, UrlTemplate, as_text
from deadlinemesh.tool_runner.outcome import Call, Tool, invalid_arguments, sound
from deadlinemesh.transport import http_deadline
from deadlinemesh.transport.retry_after import retry_after
from deadlinemesh.vocabulary import ToolResult, ToolSpec, ToolStatus

__all__ = ["HttpTool"]

_LOG = logging.getLogger("deadlinemesh.tool_runner")

FAILURE_CHARACTERS = 500
"""Characters of a failed response's body that the model is told."""

_PIECE = 65536
"""Bytes of a compressed response that one step decompresses to, at most."""

_TRANSIENT = frozenset({408, 429})


class HttpTool(Tool):
    """One endpoint of a policy's `tools.http`.

    `headers` go with each call. `wall` returns the Unix time in seconds.
    """

    def __init__(
        self,
        name: str,
        policy: HttpToolPolicy,
        url: UrlTemplate,
        headers: Mapping[str, str],
        client: httpx.AsyncClient,
        connections: OriginConnections,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.spec = ToolSpec(name, policy.description, policy.arguments, policy.idempotent)
        self.cache_for = policy.cache_for
        self.origin = f"tools.http.{name}"
        self._policy = policy
        self._url = url
        self._headers = dict(headers)
        self._client = client
        self._connections = connections
        self._wall = wall

    async def run(self, arguments: Mapping[str, Any], call: Call) -> ToolResult:
        others = {name: value for name, value in arguments.items() if name not in self._url.arguments}
        try:
            url = httpx.URL(self._url.fill(arguments))
            if self._policy.method == "GET":
                if fixed := others.keys() & url.params.keys():
                    raise UnfitArgument(f"{', '.join(sorted(fixed))}: there is no such argument")
                # Only if there are some, because merging rewrites the template's own query.
                url = url.copy_merge_params(_query(others)) if others else url
        except (UnfitArgument, httpx.InvalidURL) as error:
            return invalid_arguments(self.spec.name, [str(error)])
        async with self._connections.to(self._url.origin).slot(self.spec.name):
            call.begun()
            try:
                return await cancelled_once(self._exchange(url, others))
            except httpx.RequestError as error:
                # Only an error of the network or of the server may be different next time.
                ours = (httpx.LocalProtocolError, httpx.UnsupportedProtocol)
                transient = isinstance(error, httpx.TransportError) and not isinstance(error, ours)
                # The model reads only our own error text: other texts name hosts and addresses.
                about = f": {error}" if isinstance(error, httpx.DecodingError) else ""
                _LOG.warning("%s: no answer: %s: %s", self.origin, type(error).__name__, cut(error))
                return self._failed(f"no answer: {type(error).__name__}{about}", transient)

    async def _exchange(self, url: httpx.URL, others: Mapping[str, Any]) -> ToolResult:
        headers = dict(self._headers)
        if self._policy.internal:
            headers.update(http_deadline.encode(current().remaining, self._wall()))
        if self._policy.method == "GET":
            request = self._client.build_request("GET", url, headers=headers)
        else:
            # In ASCII, because UTF-8 cannot encode a lone surrogate.
            headers = {"Content-Type": "application/json", **headers}
            request = self._client.build_request("POST", url, headers=headers, content=json.dumps(others).encode())
        response = await self._client.send(request, stream=True)
        try:
            if response.is_success:
                return ToolResult(ToolStatus.OK, await _text(response, self._policy.max_response_bytes))
            body = await _text(response, FAILURE_CHARACTERS * 4, mark=False)  # no character has more than 4 bytes
        finally:
            await response.aclose()  # also when cancelled: this closes its connection
        said = f"HTTP {response.status_code} {response.reason_phrase}".rstrip()
        transient = response.status_code in _TRANSIENT or response.is_server_error
        wait = retry_after(response.headers, self._wall()) if transient else None
        return self._failed(f"{said}: {body[:FAILURE_CHARACTERS].strip() or 'without a body'}", transient, wait)

    def _failed(self, why: str, transient: bool, wait: float | None = None) -> ToolResult:
        return ToolResult(ToolStatus.FAILED, f"{self.spec.name} failed: {why}", transient, wait)


def _query(others: Mapping[str, Any]) -> httpx.QueryParams:
    """Query parameters. A list becomes one parameter per item, and null is left out."""
    each = ((name, item) for name, value in others.items() for item in (value if isinstance(value, list) else [value]))
    return httpx.QueryParams([(sound(name), sound(as_text(item))) for name, item in each if item is not None])


async def _text(response: httpx.Response, most_bytes: int, *, mark: bool = True) -> str:
    """The body as text, cut after `most_bytes`. The rest is not read."""
    parts: list[bytes] = []
    room = most_bytes
    async for chunk in _unpacked(response, most_bytes):
        parts.append(chunk[:room])
        room -= len(chunk)
        if room < 0:
            cut = f"\n[cut: the answer is longer than {most_bytes} bytes]" if mark else ""
            return _decoded(b"".join(parts), response.encoding, whole=False) + cut
    return _decoded(b"".join(parts), response.encoding)


async def _unpacked(response: httpx.Response, most_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the body, decompressed if necessary.

    The request asks for no compression, but a server may use it anyway. A few bytes may decompress
    to very many, so they are decompressed in pieces. Very many bytes may decompress to almost none,
    so more than `most_bytes` and a piece of compressed bytes raise DecodingError.
    """
    if response.headers.get("content-encoding", "").strip().lower() not in ("gzip", "x-gzip", "deflate"):
        async for chunk in response.aiter_raw():
            yield chunk
        return
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)  # detects gzip or zlib by the header
    read = 0
    try:
        async for chunk in response.aiter_raw():
            if unpacking.eof:
                # Data after the end is ignored. Reading for it once finds the end of the body, and
                # the connection stays usable.
                return
            read += len(chunk)
            while chunk and not unpacking.eof:
                yield unpacking.decompress(chunk, _PIECE)
                chunk = unpacking.unconsumed_tail
            if read > most_bytes + _PIECE:
                raise httpx.DecodingError(f"it unpacks {read} bytes to no more than {most_bytes}")
        yield unpacking.flush()
    except zlib.error as error:
        raise httpx.DecodingError(str(error)) from error
    if read and not unpacking.eof:
        raise httpx.DecodingError("what is packed breaks off in the middle")


def _decoded(body: bytes, encoding: str | None, *, whole: bool = True) -> str:
    """`body` as text. Unless it is `whole`, an incomplete character at its end is left out."""
    try:
        codec = codecs.lookup(encoding or "utf-8")
        if codec.name == "punycode":  # written in Python, and quadratic
            return _decoded(body, "utf-8", whole=whole)
        " ".encode(codec.name)
        return codecs.getincrementaldecoder(codec.name)("replace").decode(body, whole)
    except (LookupError, UnicodeError):  # unknown, no text codec as zlib, or without "replace" as idna
        return _decoded(body, "utf-8", whole=whole)
