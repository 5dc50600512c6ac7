"""One worker as the tool-runner sees it."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from deadlinemesh.deadline import current
from deadlinemesh.tool_runner.outcome import Call, ToolError
from deadlinemesh.tool_runner.workers.frames import Broken, packed, receive
from deadlinemesh.vocabulary import ToolResult, ToolStatus

__all__ = ["Worker", "WorkerCall", "WorkerReply"]

_LOG = logging.getLogger("deadlinemesh.tool_runner")

PATIENCE = 10
"""Cancellations after which a process that will not die, as one that hangs in a system call, is waited for no longer."""


@dataclass(frozen=True, slots=True)
class WorkerCall:
    """Which function a worker is to call, with what."""

    tool: str
    module: str
    function: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WorkerReply:
    """What came of a call in a worker, and what it says about the worker."""

    outcome: ToolResult
    traceback: str
    """Of an exception that is no `ToolError`; for the log."""
    left: str
    """What the call has left running, in words; empty where that is nothing."""
    memory_bytes: int
    """What the worker holds after it."""


class Worker:
    """A worker process of one tenant, and this end of the socket to it."""

    def __init__(self, number: int, tenant_id: str, sock: socket.socket, kill: Callable[[int], None]) -> None:
        self.number = number
        self.tenant_id = tenant_id
        self.calls = 0
        """Calls that it has been given."""
        self.environment: Mapping[str, str] = {}
        """Variables that its tools have besides the keeper's. They go with its first call, so that the keeper holds none."""
        self.reusable = False
        """Whether it may be given another call. It may not while it has one, and never after one that did not end well."""
        self.ended: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        """Done when the process is gone, with its exit code or minus a signal's number; with None where that is not known."""
        self._sock = sock
        self._kill = kill
        sock.setblocking(False)

    async def ask(self, question: WorkerCall, call: Call, most_bytes: int) -> WorkerReply:
        """Have the function called, and tell `call` what happens meanwhile. The answer is cut after `most_bytes`.

        Raises ToolError if the worker ends before it has answered. Whoever leaves early must end the worker.
        """
        self.reusable = False
        self.calls += 1
        context = current()
        head = {
            "call": self.calls,
            "tool": question.tool,
            "module": question.module,
            "function": question.function,
            "answer_bytes": most_bytes,
            "tenant_id": context.tenant_id,
            "tier": context.tier,
            "trace_id": context.trace_id,
            "run_id": context.run_id,
            # Instants, as all processes of a machine have one monotonic clock: it may take a while until this is read.
            "deadline_at": context.absolute_deadline,
            "started_at": context.started_at,
        }
        if self.calls == 1:
            head["environment"] = dict(self.environment)
        with suppress(ConnectionError):  # how it ended is told below
            data = packed(head, json.dumps(question.arguments).encode())
            await asyncio.get_running_loop().sock_sendall(self._sock, data)
        try:
            while (frame := await receive(self._sock, most_bytes)) is not None:
                said, body = frame
                if said["call"] != self.calls:
                    raise Broken("an answer to another call")
                if said["kind"] == "answer":
                    return _answer(said, body)
                call.begun()
                if said["kind"] == "progress":
                    await call.progress(float(said["fraction"]), str(said["message"]))
        except (Broken, LookupError, TypeError, ValueError, OverflowError) as error:
            raise ToolError("what its process sent was no answer; does it write to what it did not open?") from error
        await self.end()  # which changes nothing about how one that is dying ends
        raise ToolError(f"its process {_in_words(self.ended.result())} before it had answered")

    def kill(self) -> None:
        """Have the process killed, with all that it has started. `ended` tells when they are gone."""
        if not self.ended.done():
            self._kill(self.number)

    async def end(self) -> None:
        """Kill the process and wait until it is gone, whatever cancels meanwhile, but not for ever."""
        self.kill()
        cancels = 0
        try:
            while not self.ended.done():
                try:
                    await asyncio.wait([self.ended])
                except asyncio.CancelledError:
                    cancels += 1
                    if cancels > PATIENCE:
                        _LOG.error("%r was killed and does not end; it is waited for no longer", self)
                        raise
        finally:
            self.close()
        if cancels:
            raise asyncio.CancelledError

    def gone(self, code: int | None) -> None:
        """Note that the process is gone: whoever waits for an answer reads what it still said, and then the end."""
        if not self.ended.done():
            self.ended.set_result(code)
        with suppress(OSError):
            # Not its own exit: what it had forked held the other end too.
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end of the socket, when nobody listens at it."""
        self._sock.close()

    def __repr__(self) -> str:
        return f"<Worker {self.number} tenant={self.tenant_id} calls={self.calls}>"


def _in_words(code: int | None) -> str:
    if code is None:
        return "was lost"
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _answer(said: Mapping[str, Any], body: bytes) -> WorkerReply:
    retry_after = said["retry_after"]
    outcome = ToolResult(
        ToolStatus(said["status"]),
        body.decode("utf-8", "replace"),  # it may have been cut in the middle of a character
        bool(said["transient"]),
        None if retry_after is None else float(retry_after),
    )
    return WorkerReply(outcome, str(said["traceback"]), str(said["left"]), int(said["memory_bytes"]))
