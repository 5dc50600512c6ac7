"""The mesh's side of the modes benchmark: the three services as processes, and what each mode asks of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.modes.load import Run
from benchmarks.modes.store import WRITES_FILE
from deadlinemesh.v1 import orchestrator_pb2

__all__ = ["ENVIRONMENT", "PROGRAMS", "policy", "request"]

WRITE_BUDGET_S = 1.0
TOOLS = {
    "pool starvation": "pool",
    "fan-out": "fan_out",
    "background work": "background",
    "retries": "retries",
}
"""Each mode's tool; model time needs none."""
PROGRAMS = {"tool-runner": ("benchmarks.modes.store",)}
ENVIRONMENT = {WRITES_FILE: "{folder}/writes"}


def request(mode: str, run: Run) -> orchestrator_pb2.RunRequest:
    """The run of `mode` that asks for what `run` is to have."""
    if mode not in TOOLS:
        return orchestrator_pb2.RunRequest(prompt=f"Say {run.keys[0]}", model="shared")
    *several, last = run.keys
    wanted = f"{', '.join(several)} and {last}" if several else last
    return orchestrator_pb2.RunRequest(prompt=f"Get the quote for {wanted}", model="quick", tools=[TOOLS[mode]])


def policy(urls: Mapping[str, str], slots: int) -> dict[str, Any]:
    """A policy in which every pool has `slots` slots. `urls` are those of the upstreams: each mode has one of its own."""
    return {
        "tiers": {"professional": {"run_budget": "120s", "iterations": 3, "tool_retries": 2}},
        "models": {
            "quick": {"provider": "scripted", "slots": 1000, "first_token": 0, "per_token": 0},
            "shared": {
                "provider": "openai",
                "base_url": f"{urls['model']}/v1",
                "model": "x",
                "api_key_env": "",
                "slots": slots,
            },
        },
        "tools": {
            "modules": [],
            "connections_per_host": slots,
            "cache_write_budget": WRITE_BUDGET_S,
            "http": {tool: _tool(tool, urls[tool]) for tool in TOOLS.values()},
        },
    }


def _tool(name: str, url: str) -> dict[str, Any]:
    key = {"type": "string", "pattern": "^[AB][A-Z]{4}$", "description": "What to quote."}
    return {
        "url": f"{url}/{name}/{{key}}",
        "description": "Get the quote for a key.",
        "arguments": {"type": "object", "properties": {"key": key}, "required": ["key"]},
        "idempotent": True,
        **({"cache_for": "1m"} if name == "background" else {}),
    }


def writes(text: str) -> list[dict[str, Any]]:
    """What the store has written down."""
    return [json.loads(line) for line in text.splitlines()]
