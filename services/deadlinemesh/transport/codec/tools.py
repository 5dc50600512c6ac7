"""A tool's description and the events of a tool call on the wire."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from deadlinemesh.transport.codec.phases import microseconds, spend_from_wire, spend_to_wire
from deadlinemesh.v1 import common_pb2, tool_runner_pb2
from deadlinemesh.vocabulary import (
    ToolEvent,
    ToolFinished,
    ToolProgress,
    ToolResult,
    ToolSpec,
    ToolStarted,
    ToolStatus,
)

__all__ = ["tool_event_from_wire", "tool_event_to_wire", "tool_spec_from_wire", "tool_spec_to_wire"]

_STATUSES = {getattr(common_pb2, f"TOOL_STATUS_{status.name}"): status for status in ToolStatus}
_STATUSES_TO_WIRE = {status: value for value, status in _STATUSES.items()}


def tool_spec_to_wire(spec: ToolSpec) -> common_pb2.ToolSpec:
    """Encode a tool's description."""
    return common_pb2.ToolSpec(
        name=spec.name,
        description=spec.description,
        arguments_schema_json=json.dumps(spec.schema, ensure_ascii=False),
        idempotent=spec.idempotent,
    )


def tool_spec_from_wire(spec: common_pb2.ToolSpec) -> ToolSpec:
    """Decode a tool's description. An empty schema allows no arguments.

    Raises ValueError for an unusable schema.
    """
    return ToolSpec(spec.name, spec.description, _schema(spec.arguments_schema_json), spec.idempotent)


def _schema(text: str) -> Mapping[str, Any]:
    if not text.strip():
        return {"type": "object", "properties": {}}
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(schema, dict) or not isinstance(schema.get("properties", {}), dict):
        raise ValueError('must be the JSON Schema of an object: {"type": "object", "properties": {...}}')
    return schema


def tool_event_to_wire(event: ToolEvent) -> tool_runner_pb2.CallToolResponse:
    """Encode an event of a tool call."""
    match event:
        case ToolStarted(queued):
            started = tool_runner_pb2.ToolStarted(queue_us=microseconds(queued))
            return tool_runner_pb2.CallToolResponse(started=started)
        case ToolProgress(fraction, message):
            progress = tool_runner_pb2.ToolProgress(message=message, fraction=fraction)
            return tool_runner_pb2.CallToolResponse(progress=progress)
        case ToolFinished():
            return tool_runner_pb2.CallToolResponse(result=_finished_to_wire(event))


def tool_event_from_wire(response: tool_runner_pb2.CallToolResponse) -> ToolEvent | None:
    """Decode an event of a tool call; None for one that this version does not know."""
    match response.WhichOneof("event"):
        case "started":
            return ToolStarted(response.started.queue_us / 1_000_000)
        case "progress":
            return ToolProgress(response.progress.fraction, response.progress.message)
        case "result":
            return _finished_from_wire(response.result)
    return None


def _finished_to_wire(event: ToolFinished) -> tool_runner_pb2.ToolResult:
    result = event.result
    return tool_runner_pb2.ToolResult(
        status=_STATUSES_TO_WIRE[result.status],
        content=result.content,
        spend=None if event.spend is None else spend_to_wire(event.spend),
        transient=result.transient,
        retry_after_us=microseconds(result.retry_after or 0.0),
    )


def _finished_from_wire(result: tool_runner_pb2.ToolResult) -> ToolFinished:
    return ToolFinished(
        ToolResult(
            status=_STATUSES.get(result.status, ToolStatus.FAILED),
            content=result.content,
            transient=result.transient,
            retry_after=result.retry_after_us / 1_000_000 if result.retry_after_us else None,
        ),
        spend_from_wire(result.spend) if result.HasField("spend") else None,
    )
