"""The tool-runner runs tools of every kind, each inside its caller's deadline.

    tool.py         `@tool` makes a Python function a tool
    outcome.py      the base class of tools, the call that a tool sees, failures as results
    arguments.py    checks a model's arguments, and explains each violation to the model
    keywords.py     JSON Schema keywords that are checked in bounded time
    kinds/          the kinds of tools: python.py, process.py, http.py
    workers/        processes that run plain functions
    registry.py     the tools of a policy, and the tenants that may use each
    builtin.py      the built-in tools
    cache.py        results of idempotent tools, cached per tenant
    service.py      one call: queue, progress, result, and its time by phase
    servicer.py     the same as `ToolRunnerService`; the only module here that uses messages

The names that authors of tools need are exported here. The guide is `docs/writing-tools.md`.
"""

from deadlinemesh.tool_runner.outcome import ToolError
from deadlinemesh.tool_runner.tool import Progress, tool

__all__ = ["Progress", "ToolError", "tool"]
