"""Tools that are plain Python functions.

Each call runs in a worker process, which is killed when its time is up.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from deadlinemesh.deadline import current
from deadlinemesh.tool_runner.outcome import Call, Tool
from deadlinemesh.tool_runner.tool import Definition
from deadlinemesh.tool_runner.workers.pool import Workers
from deadlinemesh.tool_runner.workers.worker import WorkerCall
from deadlinemesh.vocabulary import ToolResult

__all__ = ["ProcessTool"]

_LOG = logging.getLogger("deadlinemesh.tool_runner")


class ProcessTool(Tool):
    """A plain function decorated with `@tool`.

    The worker imports the function's module. It also checks the constraints that only the
    function's annotations express.
    """

    def __init__(self, definition: Definition, workers: Workers) -> None:
        self.spec = definition.spec
        self.cache_for = definition.cache_for
        self.origin = definition.origin
        self._workers = workers

    async def run(self, arguments: Mapping[str, Any], call: Call) -> ToolResult:
        module, _, function = self.origin.partition(":")
        answer = await self._workers.ask(WorkerCall(self.spec.name, module, function, arguments), call)
        about = (self.spec.name, self.origin, current().tenant_id, current().run_id)
        if answer.traceback:
            _LOG.warning("tool %s (%s) failed: tenant %s, run %s\n%s", *about, answer.traceback)
        if answer.left:
            _LOG.warning(
                "tool %s (%s) left %s running, which was ended: tenant %s, run %s", *about[:2], answer.left, *about[2:]
            )
        return answer.outcome
