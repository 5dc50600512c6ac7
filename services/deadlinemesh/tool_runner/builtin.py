"""The built-in tools. They need no key and no network."""

from __future__ import annotations

import ast
import asyncio
import math
import operator
import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import Field

from deadlinemesh.errors import shown
from deadlinemesh.tool_runner.outcome import ToolError
from deadlinemesh.tool_runner.tool import Progress, tool

__all__ = ["calculate", "current_time", "long_task", "text_stats"]

MOST_BITS = 8192
"""Bits of any whole number during a calculation. Larger ones would hold the event loop, and are
refused as an attack.
"""

MOST_DIGITS = 400
"""Digits, before or after the decimal point, that `round` accepts. No float has more. For a whole
number `round` computes 10 ** digits first.
"""


@tool(idempotent=True)
async def calculate(
    expression: Annotated[
        str, Field(max_length=500, description="Arithmetic, such as (19.99 * 3) / 1.2, 2 ** 10 or sqrt(2)")
    ],
) -> str:
    """Calculate an arithmetic expression exactly.

    Knows + - * / // % **, parentheses, abs, ceil, cos, exp, floor, log, max, min, round, sin, sqrt, tan, and pi and e.
    """
    try:
        return str(_value(ast.parse(expression.strip(), mode="eval").body))
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ToolError(
            f"{shown(expression)} is not an arithmetic expression; write for example (2 + 3) * 4"
        ) from error
    except (ArithmeticError, ValueError, TypeError) as error:
        raise ToolError(f"{shown(expression)} has no value: {error}") from error


@tool
async def current_time(
    timezone: Annotated[str, Field(description="An IANA time zone, such as UTC or Europe/Berlin")] = "UTC",
) -> dict[str, str]:
    """Tell the date and the time in a time zone."""
    try:
        zone = ZoneInfo(timezone)
    except (KeyError, ValueError, OSError) as error:
        raise ToolError(
            f"{shown(timezone)} is not an IANA time zone; give for example UTC or America/New_York"
        ) from error
    now = datetime.now(zone)
    return {"timezone": timezone, "iso": now.isoformat(timespec="seconds"), "weekday": now.strftime("%A")}


@tool(idempotent=True)
async def text_stats(text: Annotated[str, Field(max_length=1_000_000, description="The text")]) -> dict[str, int]:
    """Count the characters, words, sentences and lines of a text."""
    return {
        "characters": len(text),
        "words": len(text.split()),
        # Each match begins at a sentence's last letter. A match that began at the first letter
        # would take quadratic time for a text without a full stop.
        "sentences": len(re.findall(r"[^.!?][.!?]+(?=\s|$)", text)) or int(bool(text.strip())),
        "lines": len(text.splitlines()),
    }


@tool(idempotent=True)
async def long_task(
    seconds: Annotated[float, Field(ge=0, le=3600, description="How long it takes")],
    progress: Progress,
    steps: Annotated[int, Field(ge=1, le=1000, description="After how many equal parts it tells its progress")] = 10,
) -> str:
    """Take a while, and tell the progress. For trying out deadlines and cancellation."""
    for step in range(1, steps + 1):
        await asyncio.sleep(seconds / steps)
        await progress(step / steps, f"step {step} of {steps}")
    return f"done: {seconds:g} s in {steps} steps"


Number = int | float


def _rounded(number: Number, digits: Number | None = None) -> Number:
    if digits is not None and abs(digits) > MOST_DIGITS:
        raise ValueError(f"round takes at most {MOST_DIGITS} digits, before the point or after it")
    return round(number, digits)  # type: ignore[arg-type]  # of digits that are no whole number it says so itself


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "ceil": math.ceil,
    "cos": math.cos,
    "exp": math.exp,
    "floor": math.floor,
    "log": math.log,
    "max": max,
    "min": min,
    "round": _rounded,
    "sin": math.sin,
    "sqrt": math.sqrt,
    "tan": math.tan,
}
_CONSTANTS = {"pi": math.pi, "e": math.e}


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            return _bounded(node.value)
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            a, b = _value(left), _value(right)
            powers = isinstance(op, ast.Pow) and isinstance(a, int) and isinstance(b, int) and abs(a) > 1
            if powers and b * int(a).bit_length() > MOST_BITS:  # before it is computed, not after
                raise OverflowError("the power is too large")
            return _bounded(_BINARY[type(op)](a, b))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _bounded(_FUNCTIONS[name](*map(_value, args)))
        case _:
            raise ValueError(
                f"{shown(ast.unparse(node))} is not arithmetic; it knows numbers, {', '.join(_FUNCTIONS)}, pi and e"
            )


def _bounded(value: Any) -> Number:
    if isinstance(value, int) and value.bit_length() <= MOST_BITS:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise OverflowError(
        "a number on the way is too large" if isinstance(value, (int, float)) else "it is not a real number"
    )
