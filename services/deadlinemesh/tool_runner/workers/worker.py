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

CANCELS_BEFORE_GIVING_UP = 10
"""Cancellations during the wait for a killed process that does not die, perhaps because it hangs in
a system call. After more, the wait ends.
"""


@dataclass(frozen=True, slots=True)
class WorkerCall:
    """A function for a worker to call, with its arguments."""

    tool: str
    module: str
    function: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WorkerReply:
    """The result of a call in a worker, and the state of the worker after it."""

    outcome: ToolResult
    traceback: str
    """The traceback of an exception other than `ToolError`, for the log."""
    left: str
    """Threads and processes that the call has left running, in words; empty if there are none."""
    memory_bytes: int
    """Memory of the worker after the call."""


class Worker:
    """A worker process of one tenant, and this end of the socket to it."""

    def __init__(self, number: int, tenant_id: str, sock: socket.socket, kill: Callable[[int], None]) -> None:
        self.number = number
        self.tenant_id = tenant_id
        self.calls = 0
        """Number of calls that it has received."""
        self.environment: Mapping[str, str] = {}
        """Variables of its tools besides the keeper's. They travel with its first call, so the
        keeper has none of them.
        """
        self.reusable = False
        """True if it may receive another call. False during a call, and after a call without a
        reply.
        """
        self.ended: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        """Done when the process is gone. The result is its exit code, or minus a signal's number;
        None if unknown.
        """
        self._sock = sock
        self._kill = kill
        sock.setblocking(False)

    async def ask(self, question: WorkerCall, call: Call, most_bytes: int) -> WorkerReply:
        """Call the function, and report its start and progress to `call`.

        The answer is cut after `most_bytes`.

        Raises ToolError if the worker ends before it has replied. A caller that leaves early must
        end the worker.
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
            # Instants, because all processes of a machine share one monotonic clock, and it may
            # take a while until this is read.
            "deadline_at": context.absolute_deadline,
            "started_at": context.started_at,
        }
        if self.calls == 1:
            head["environment"] = dict(self.environment)
        with suppress(ConnectionError):  # the error below reports the end
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
        await self.end()  # a process that is dying already keeps its exit code
        raise ToolError(f"its process {_in_words(self.ended.result())} before it had answered")

    def kill(self) -> None:
        """Kill the process and all processes that it has started.

        `ended` is done when they are gone.
        """
        if not self.ended.done():
            self._kill(self.number)

    async def end(self) -> None:
        """Kill the process and wait until it is gone.

        Up to CANCELS_BEFORE_GIVING_UP cancellations do not end the wait, but are raised after it. One more ends it.
        """
        self.kill()
        cancels = 0
        try:
            while not self.ended.done():
                try:
                    await asyncio.wait([self.ended])
                except asyncio.CancelledError:
                    cancels += 1
                    if cancels > CANCELS_BEFORE_GIVING_UP:
                        _LOG.error("%r was killed and does not end; it is waited for no longer", self)
                        raise
        finally:
            self.close()
        if cancels:
            raise asyncio.CancelledError

    def gone(self, code: int | None) -> None:
        """Note that the process is gone.

        A pending `ask` reads the remaining frames, and then the end.
        """
        if not self.ended.done():
            self.ended.set_result(code)
        with suppress(OSError):
            # Its exit alone may not close the other end: a process that it forked may hold it too.
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end of the socket. Call it when no task reads from it."""
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
