"""`dmesh serve`: runs one service in this process, as containers do."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack

from deadlinemesh.hosting.assembly import assemble
from deadlinemesh.hosting.event_loop import event_loop
from deadlinemesh.hosting.interpreter import keep_memory_together, quiet_the_core, return_memory, spare_the_event_loop
from deadlinemesh.hosting.settings import HopSettings
from deadlinemesh.telemetry.logs import BoundedHandler, JsonFormatter, TextFormatter
from deadlinemesh.tool_runner.workers.confinement import forbid_dumps

__all__ = ["serve"]

_LOG = logging.getLogger("deadlinemesh")


def serve(name: str, settings: HopSettings, *, announce: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, then drain and end the process.

    With `announce`, it prints one JSON line with its port when it is ready. Raises PolicyError,
    ValueError or OSError if it cannot start.
    """
    quiet_the_core()
    keep_memory_together()
    on_freed = return_memory()
    # Processes started by tools inherit the environment, and other processes of the same user may
    # read this one's memory. The mesh token must not be found in either.
    os.environ.pop("DMESH_MESH_TOKEN", None)
    if not settings.dumpable:
        forbid_dumps()
    _log_to_stderr(settings)
    with asyncio.Runner(loop_factory=event_loop) as runner:
        try:
            runner.run(_serve(name, settings, announce, on_freed))
        except asyncio.CancelledError:
            _LOG.info("%s was told to stop before it served", name)
        if left := runner.run(_end_tasks()):
            _LOG.warning("%s ends with %d tasks that do not: %s", name, len(left), ", ".join(left)[:_LEFT_CHARACTERS])
        # The runner would wait for those tasks for ever. When it closes the loop, signals get their
        # default handlers back. Then one more SIGTERM would change the exit code of a drained
        # process.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)


_LAST_TASKS_S = 0.5
"""Seconds that the remaining tasks get to end, once everything is closed."""

_LEFT_CHARACTERS = 1000
"""Characters of the names of tasks that do not end, in the log."""


async def _end_tasks() -> list[str]:
    """Cancel all tasks. Returns the names of tasks that do not end."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        _, tasks = await asyncio.wait(tasks, timeout=_LAST_TASKS_S)
    return [task.get_name() for task in tasks]


async def _serve(name: str, settings: HopSettings, announce: bool, on_freed: Callable[[], None]) -> None:
    starting = asyncio.current_task()
    assert starting is not None
    # Only until the server sets its own handler.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, starting.cancel)
    async with AsyncExitStack() as stack:
        stack.callback(_end_as_told)
        hop = assemble(name, settings, stack)
        server = hop.server
        server.interceptor.on_freed = on_freed
        port = await server.start()
        spare_the_event_loop()
        _LOG.info("%s listens on port %d", name, port)
        if announce:
            print(json.dumps({"service": name, "port": port}), flush=True)
        following = None
        if hop.policy_file is not None:
            following = asyncio.ensure_future(hop.policy_file.follow(hop.prepare, hop.tell))
        await server.serve_until_signalled()
        if following is not None:
            following.cancel()
            await asyncio.wait({following})
        _LOG.info("%s has drained", name)


def _end_as_told() -> None:
    """Ignore further signals. The process will end now, and its exit code must show the drain."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, lambda: None)


def _log_to_stderr(settings: HopSettings) -> None:
    handler = BoundedHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO, it logs every URL
