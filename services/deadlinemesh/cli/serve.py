"""`dmesh serve`: one service in this process, as containers run it."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from contextlib import AsyncExitStack

from deadlinemesh.cli.event_loop import event_loop
from deadlinemesh.cli.hops import assemble
from deadlinemesh.cli.interpreter import keep_memory_together, quiet_the_core, spare_the_event_loop
from deadlinemesh.cli.settings import HopSettings
from deadlinemesh.telemetry.logs import BoundedHandler, JsonFormatter, TextFormatter

__all__ = ["serve"]

_LOG = logging.getLogger("deadlinemesh")


def serve(name: str, settings: HopSettings, *, announce: bool = False) -> None:
    """Serve until told to stop, then drain. `announce` prints one JSON line with the address once it is ready.

    Raises PolicyError, ValueError or OSError where it cannot start.
    """
    quiet_the_core()
    keep_memory_together()
    _log_to_stderr(settings)
    with asyncio.Runner(loop_factory=event_loop) as runner:
        try:
            runner.run(_serve(name, settings, announce))
        except asyncio.CancelledError:
            _LOG.info("%s was told to stop before it served", name)


async def _serve(name: str, settings: HopSettings, announce: bool) -> None:
    starting = asyncio.current_task()
    assert starting is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, starting.cancel)  # until the server takes it over
    async with AsyncExitStack() as stack:
        stack.callback(_end_as_told)
        hop = assemble(name, settings, stack)
        server = hop.server
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
    """Let no further signal end the process: it is as good as gone, and its exit code tells what became of its work."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(number)  # else it gives back the default as it closes
        signal.signal(number, signal.SIG_IGN)


def _log_to_stderr(settings: HopSettings) -> None:
    handler = BoundedHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs each request at INFO, URLs and all
