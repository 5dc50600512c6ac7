"""The program of a worker: it takes one call after another, and runs each tool in its main thread.

A tool can harm only this process. It may block, spin, exit, crash, fork or never return.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Awaitable, Generator, Mapping
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deadlinemesh.deadline import DeadlineContext, entered
from deadlinemesh.tool_runner.kinds.python import content_of, violations_of
from deadlinemesh.tool_runner.outcome import ToolError, failure, invalid_arguments
from deadlinemesh.tool_runner.tool import Definition, definition_of, tool
from deadlinemesh.tool_runner.workers.frames import packed, receive_blocking
from deadlinemesh.vocabulary import ToolResult, ToolStatus

__all__ = ["rehearse", "settle", "work"]

_NICER = 5
"""The increase of a worker's niceness. The event loops have deadlines to meet, so their processor
time comes first.
"""

_TRACEBACK_CHARACTERS = 8_000
"""Characters at the end of a traceback that are kept for the log."""

_MESSAGE_CHARACTERS = 1_000
"""Characters of a progress message, and of the list of things that a call left running."""


@tool
def example(text: str = "") -> dict[str, str]:
    """Give it back."""
    return {"text": text}


def rehearse() -> None:
    """Run the code paths of a call once in the keeper.

    Lazy imports then happen there, not in each worker.
    """
    definition = definition_of(example)
    assert definition is not None
    content_of(definition.function(**definition.bind({"text": ""})))


def work(sock: socket.socket) -> None:
    """Take calls until the other end of `sock` is closed."""
    while (question := receive_blocking(sock)) is not None:
        head, arguments = question
        # Context variables that a tool sets end with the call.
        copy_context().run(_Call(sock, head).run, arguments)


def settle() -> None:
    """Set the process attributes that a worker may not change after its confinement."""
    # Only SIGKILL ends this process. The signals are handled and not ignored, because processes
    # that it starts would inherit that they are ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    os.dup2(2, 1)  # a tool's prints belong in the log
    os.nice(_NICER)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # writing a core takes longer than any deadline allows
    with suppress(OSError):  # out of memory, the system shall kill a tool before the tool-runner
        Path("/proc/self/oom_score_adj").write_text("500")


class _Call:
    """One call, from its arguments to its reply."""

    def __init__(self, sock: socket.socket, head: Mapping[str, Any]) -> None:
        self._sock = sock
        self._head = head
        self._lock = threading.Lock()
        self._over = False
        self._trace = ""

    def run(self, arguments: bytes) -> None:
        before = frozenset(threading.enumerate())
        try:
            os.environ.update(self._head.get("environment", {}))  # before the module reads it
            definition = _find(self._head["module"], self._head["function"])
            before = frozenset(threading.enumerate())  # a module may start threads for good, a call may not
            outcome = self._outcome(definition, json.loads(arguments))
        except BaseException as error:
            outcome = self._failed(error)
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        content = outcome.content.encode(errors="replace")[: self._head["answer_bytes"]]
        self._send(
            {
                "kind": "answer",
                "status": outcome.status.value,
                "transient": outcome.transient,
                "retry_after": outcome.retry_after,
                "traceback": self._trace,
                "left": _left(before),
                "memory_bytes": _memory_bytes(),
            },
            content,
        )

    def _outcome(self, definition: Definition, arguments: Mapping[str, Any]) -> ToolResult:
        try:
            bound = definition.bind(arguments)
        except ValidationError as error:
            return invalid_arguments(definition.spec.name, violations_of(error))
        if definition.progress is not None:
            bound[definition.progress] = self._progress
        self._send({"kind": "begun"})
        with entered(self._context()):
            answer: Any = definition.function(**bound)
        if inspect.isawaitable(answer):
            raise ToolError("it gave an awaitable instead of an answer: declare the tool itself with `async def`")
        return ToolResult(ToolStatus.OK, content_of(answer))

    def _failed(self, error: BaseException) -> ToolResult:
        name = self._head["tool"]
        if isinstance(error, SystemExit):
            error = ToolError("it tried to exit the process")
        if not isinstance(error, ToolError):
            self._trace = "".join(traceback.format_exception(error))[-_TRACEBACK_CHARACTERS:]
        return failure(name, error)

    def _context(self) -> DeadlineContext:
        """The caller's context."""
        head = self._head
        return DeadlineContext(
            tenant_id=head["tenant_id"],
            absolute_deadline=head["deadline_at"],
            tier=head["tier"],
            trace_id=head["trace_id"],
            run_id=head["run_id"],
            started_at=head["started_at"],
        )

    def _progress(self, fraction: float, message: str = "") -> Awaitable[None]:
        self._send({"kind": "progress", "fraction": float(fraction), "message": str(message)[:_MESSAGE_CHARACTERS]})
        return _Told()

    def _send(self, head: dict[str, Any], body: bytes = b"") -> None:
        with self._lock:  # a tool may report progress from other threads
            if not self._over:
                self._over = head["kind"] == "answer"
                self._sock.sendall(packed({"call": self._head["call"], **head}, body))


class _Told:
    """The return value of `progress`.

    The report has been sent already, so awaiting it does nothing.
    """

    def __await__(self) -> Generator[Any, Any, None]:
        return
        yield


def _find(module: str, function: str) -> Definition:
    for value in vars(importlib.import_module(module)).values():
        definition = definition_of(value)
        if definition is not None and definition.origin == f"{module}:{function}":
            return definition
    raise ToolError(f"{module} has no tool {function} when it is imported in a worker")


def _left(before: frozenset[threading.Thread]) -> str:
    """Threads and processes that the call has left running, for the log; empty if there are none.

    Reaps children that have ended.
    """
    left = [f"the thread {thread.name}" for thread in threading.enumerate() if thread not in before]
    with suppress(ChildProcessError):
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                left.append("a process")
                break
    return ", ".join(left)[:_MESSAGE_CHARACTERS]


def _memory_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        # The peak memory. It is in kibibytes on Linux, but Linux has /proc. It is in bytes on
        # other systems that matter.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
