from __future__ import annotations

import math
import re
import tracemalloc
from contextlib import suppress
from datetime import datetime

import pytest
from hypothesis import given
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
        ("round(2.5)", "2"),
        ("round(12345, -2)", "12300"),
        ("round(5, -400) + round(5, 400)", "5"),
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
        "round(5, -401)",
        "round(5, -999999)",
        "round(0.5, 401)",
        "round(5, 1.0)",
        "round(5, 1, 1)",
    ],
)
async def test_what_has_no_value_or_is_no_arithmetic_is_explained(expression: str) -> None:
    with pytest.raises(ToolError):
        await calculate(expression)


SIGNS = ("+", "-", "*", "/", "//", "%", "**", "<<", ">>", "|", "<")
NAMES = ("abs", "ceil", "cos", "exp", "floor", "log", "max", "min", "round", "sin", "sqrt", "tan", "factorial", "pow")
LARGE = ("(10 ** 7)", "(-(10 ** 7))", "2 ** 8190", "1e308", "5e-324")


@pytest.mark.parametrize("form", [*(f"{{}} {sign} {{}}" for sign in SIGNS), *(f"{name}({{}}, {{}})" for name in NAMES)])
async def test_nothing_on_the_way_to_a_result_takes_more_memory_than_the_largest_number(form: str) -> None:
    one_less = form.replace(", {}", "")
    expressions = [*(form.format(a, b) for a in LARGE for b in LARGE), *(one_less.format(a, a) for a in LARGE)]
    tracemalloc.start()
    try:
        for expression in expressions:
            with suppress(ToolError):
                await calculate(expression)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


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
