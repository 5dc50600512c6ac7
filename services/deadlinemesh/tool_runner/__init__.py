"""The tool-runner: runs tools of every kind, each inside its caller's deadline.

    tool.py         `@tool`: a Python function becomes a tool
    outcome.py      what a tool is and what comes of a call
    arguments.py    a model's arguments, checked; what is wrong is explained so that it can correct itself
    keywords.py     the keywords of JSON Schema that a hostile text could make slow
    kinds/          how each kind of tool is run: python.py, process.py, http.py
    workers/        the processes in which plain functions run
    registry.py     the tools of a policy, and who may use which
    builtin.py      the tools that are always there
    cache.py        results of idempotent tools, kept for their tenants
    service.py      one call: queue, progress, result, and where its time went
    servicer.py     the same as `ToolRunnerService`; the only module here that knows messages

What a tool's author needs is exported here; `docs/writing-tools.md` is the guide.
"""

from deadlinemesh.tool_runner.outcome import ToolError
from deadlinemesh.tool_runner.tool import Progress, tool

__all__ = ["Progress", "ToolError", "tool"]
