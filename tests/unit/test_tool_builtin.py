from __future__ import annotations

import math
import re
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deadlinemesh.tool_runner import ToolError
from deadlinemesh.tool_runner.builtin import calculate, current_time, long_task, text_stats


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 3 * 4", "14"),
        ("(19.99 * 3) / 1.2", str(19.99 * 3 / 1.2)),
        ("2 ** 100", str(2**100)),
        ("-7 // 2", "-4"),
        ("2 ** -1", "0.5"),
        ("(-1) ** 1001", "-1"),
        ("sqrt(2) + max(1, pi)", str(math.sqrt(2) + math.pi)),
        ("  round(2.567, 1) ", "2.6"),
    ],
)
async def test_arithmetic_is_calculated(expression: str, value: str) -> None:
    assert await calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "2 +",
        "2; 3",
        "x",
        "True",
        "'a' * 3",
        "__import__('os')",
        "(1).__class__",
        "[1][0]",
        "abs(-1, key=2)",
        "1 / 0",
        "sqrt(-1)",
        "(-8) ** 0.5",
        "9 ** 9 ** 9",
        "2 ** 10000",
        "(2 ** 8000) * (2 ** 8000)",
        "1e308 * 10",
        "1.5 ** 99999",
        "exp(10000)",
        "(" * 400 + "1" + ")" * 400,
        "-" * 490 + "1j",
        "max()",
    ],
)
async def test_what_has_no_value_or_is_no_arithmetic_is_explained(expression: str) -> None:
    with pytest.raises(ToolError):
        await calculate(expression)


@settings(deadline=None)  # how long an example takes says only how busy the machine is
@given(expression=st.text(alphabet="0123456789+-*/%().e ", max_size=40))
async def test_no_expression_does_anything_but_yield_a_number_or_an_explanation(expression: str) -> None:
    try:
        value = float(await calculate(expression))
    except (ToolError, OverflowError):  # a whole number may be too large for a float, and is right all the same
        return
    assert math.isfinite(value)


async def test_the_time_is_told_in_the_zone_that_was_asked_for() -> None:
    told = await current_time("Asia/Kathmandu")
    assert datetime.fromisoformat(told["iso"]).strftime("%A %z") == f"{told['weekday']} +0545"


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../../etc/passwd", "", "\0"])
async def test_an_unknown_zone_is_explained(zone: str) -> None:
    with pytest.raises(ToolError, match="give for example UTC"):
        await current_time(zone)


async def test_a_text_is_counted() -> None:
    assert await text_stats("One two. Three?\nFour") == {"characters": 20, "words": 4, "sentences": 2, "lines": 2}
    assert await text_stats("") == {"characters": 0, "words": 0, "sentences": 0, "lines": 0}


@given(text=st.text(alphabet="ab.!? \n", max_size=40))
async def test_a_sentence_is_something_and_then_full_stops_before_a_space_or_the_end(text: str) -> None:
    by_the_letter = len(re.findall(r"[^.!?]+[.!?]+(?=\s|$)", text)) or int(bool(text.strip()))
    assert (await text_stats(text))["sentences"] == by_the_letter


async def test_the_longest_text_without_a_full_stop_is_counted_at_once() -> None:
    """It took more than an hour of the event loop."""
    assert (await text_stats("a" * 1_000_000))["sentences"] == 1


async def test_a_long_task_tells_each_step() -> None:
    told: list[tuple[float, str]] = []

    async def progress(fraction: float, message: str = "") -> None:
        told.append((fraction, message))

    assert await long_task(0, progress, steps=2) == "done: 0 s in 2 steps"
    assert told == [(0.5, "step 1 of 2"), (1.0, "step 2 of 2")]
