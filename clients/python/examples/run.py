"""Runs an agent on a Deadline Mesh, shows what happens as it happens, and then where the time went."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys

from deadlinemesh.client import DeadlineMesh
from deadlinemesh.errors import InvalidRequest, MeshError
from deadlinemesh.v1 import common_pb2, orchestrator_pb2

FAILED = 1
CANCELLED = 130
"""What a shell reports of a program that Ctrl-C ended."""


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__)
    address = os.environ.get("DMESH_ADDR") or "localhost:50051"
    parser.add_argument("--addr", default=address, metavar="HOST:PORT", help="the orchestrator; also DMESH_ADDR")
    key = os.environ.get("DMESH_API_KEY", "")
    parser.add_argument("--key", default=key, help="the API key; better DMESH_API_KEY, which no process list shows")
    parser.add_argument("--deadline", type=seconds, default="20s", help="500ms, 20s or 2m; 0 leaves it to the tier")
    parser.add_argument("--model", default="", help="empty for the tenant's default")
    parser.add_argument("--tool", action="append", default=[], help="repeatable; left out: all that the tenant may")
    parser.add_argument("prompt", nargs="+")
    return parser.parse_args()


def seconds(text: str) -> float | None:
    if text == "0":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write it as 500ms, 20s or 2m")
    return float(match[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0}[match[2]]


async def run(options: argparse.Namespace) -> orchestrator_pb2.RunFinished:
    """Watch a run to its end, printing its events."""
    show = Printer()
    finished: orchestrator_pb2.RunFinished | None = None
    async with DeadlineMesh(options.addr, api_key=options.key) as mesh:
        prompt = " ".join(options.prompt)
        async for event in mesh.run(prompt, deadline=options.deadline, model=options.model, tools=options.tool):
            show.event(event)
            if event.HasField("finished"):
                finished = event.finished
    if finished is None:
        raise MeshError("the stream ended before the run did; get_run tells how it ended")
    return finished


class Printer:
    """Prints events: text as it flows, everything else on a line of its own."""

    def __init__(self) -> None:
        self._mid_line = False
        self._tool_names: dict[str, str] = {}

    def event(self, event: orchestrator_pb2.RunResponse) -> None:
        match event.WhichOneof("event"):
            case "started":
                started, grant = event.started, event.started.grant
                said = f"{grant.tier} tier, {grant.granted_us / 1e6:.1f} s granted, model {started.model}"
                self._line(event, f"run {started.run_id}: {said}")
            case "text":
                print(event.text.text, end="", flush=True)
                self._mid_line = not event.text.text.endswith("\n")
            case "tool_call_started":
                call, left = event.tool_call_started.call, event.tool_call_started.remaining_us / 1e6
                self._tool_names[call.id] = call.name
                self._line(event, f"tool {call.name} {call.arguments_json}, {left:.1f} s left")
            case "tool_call_progress":
                progress = event.tool_call_progress
                name = self._tool_names.get(progress.call_id, "")
                self._line(event, f"tool {name} {100 * progress.fraction:.0f}% {progress.message}")
            case "tool_call_finished":
                ended = event.tool_call_finished
                status = common_pb2.ToolStatus.Name(ended.status).removeprefix("TOOL_STATUS_")
                self._line(event, f"tool {ended.name} {status} after {ended.elapsed_us / 1e3:.1f} ms")

    def _line(self, event: orchestrator_pb2.RunResponse, text: str) -> None:
        if self._mid_line:
            print()
            self._mid_line = False
        print(f"[{event.elapsed_us / 1e3:9.1f} ms] {text}", flush=True)


def print_finished(finished: orchestrator_pb2.RunFinished) -> None:
    print(f"\n--- {'PARTIAL answer' if finished.partial else 'answer'} ---\n{finished.answer}")
    print(f"\noutcome  {orchestrator_pb2.Outcome.Name(finished.outcome).removeprefix('OUTCOME_')}")
    if finished.cause:
        print(f"cause    {common_pb2.Cause.Name(finished.cause).removeprefix('CAUSE_')}: {finished.detail}")
    ledger = finished.ledger

    def row(name: str, us: int) -> None:
        print(f"{name:<16} {us / 1e3:>10.1f} {us / max(ledger.elapsed_us, 1):>7.1%}")

    print(f"\n{'phase':<16} {'ms':>10} {'share':>7}")
    for one in ledger.phases:
        row(common_pb2.Phase.Name(one.phase).removeprefix("PHASE_").lower(), one.spent_us)
    row("unattributed", ledger.unattributed_us)
    row("elapsed", ledger.elapsed_us)
    print(f"{'granted':<16} {ledger.granted_us / 1e3:>10.1f}")


def print_error(error: MeshError) -> None:
    print(f"\nerror: {error.reason}: {error}", file=sys.stderr)
    if isinstance(error, InvalidRequest):
        for violation in error.violations:
            print(f"  {violation.field}: {violation.description}", file=sys.stderr)
    retry_after = getattr(error, "retry_after", None)
    if retry_after:
        print(f"  try again in {retry_after:g} s", file=sys.stderr)


def main() -> int:
    options = read_arguments()
    try:
        finished = asyncio.run(run(options))
    except KeyboardInterrupt:  # asyncio has cancelled the run and let it end by now
        print("\nthe run was cancelled", file=sys.stderr)
        return CANCELLED
    except MeshError as error:
        print_error(error)
        return FAILED
    print_finished(finished)
    answered = (orchestrator_pb2.OUTCOME_COMPLETED, orchestrator_pb2.OUTCOME_DEADLINE_SPENT)
    return 0 if finished.outcome in answered else FAILED


if __name__ == "__main__":
    raise SystemExit(main())
