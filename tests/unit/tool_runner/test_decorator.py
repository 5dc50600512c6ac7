from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from functools import wraps
from typing import Annotated, Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field
from tests.support import blocking_tools

from deadlinemesh.tool_runner import Progress, tool
from deadlinemesh.tool_runner.tool import Definition, definition_of


class Size(StrEnum):
    SMALL = "small"
    LARGE = "large"


@dataclass
class Place:
    street: str
    number: int = 1


@tool(idempotent=True)
async def book(
    place: Place,
    day: date,
    progress: Progress,
    size: Size = Size.SMALL,
    schema: Annotated[str | None, Field(description="A name that clashes with pydantic's own")] = None,
) -> str:
    """Book a table.

    The second paragraph counts as well.
    """
    await progress(1.0, "booked")
    return f"{place.street} {place.number} on {day:%A} {size} {schema}"


def definition(function: Callable[..., Any]) -> Definition:
    found = definition_of(function)
    assert found is not None
    return found


def test_name_description_and_schema_come_from_the_function() -> None:
    spec = definition(book).spec
    assert spec.name == "book"
    assert spec.description == "Book a table.\n\nThe second paragraph counts as well."
    assert spec.idempotent
    Draft202012Validator.check_schema(spec.schema)
    properties = spec.schema["properties"]
    assert list(properties) == ["place", "day", "size", "schema"]
    assert properties["schema"]["description"] == "A name that clashes with pydantic's own"
    assert properties["size"]["default"] == "small"
    assert spec.schema["required"] == ["place", "day"]
    assert spec.schema["additionalProperties"] is False
    assert "title" not in properties["day"]


def test_arguments_become_the_annotated_types() -> None:
    bound = definition(book).bind({"place": {"street": "Main"}, "day": "2026-11-24", "size": "large"})
    assert bound == {"place": Place("Main", 1), "day": date(2026, 11, 24), "size": Size.LARGE, "schema": None}


def test_a_progress_parameter_is_no_argument() -> None:
    assert definition(book).progress == "progress"
    assert "progress" not in definition(book).spec.schema["properties"]


def test_tools_are_not_idempotent_unless_they_say_so() -> None:
    @tool
    async def pay() -> None:
        """Pay."""

    assert not definition(pay).spec.idempotent
    assert definition(pay).spec.schema["properties"] == {}


def test_only_idempotent_tools_may_have_their_results_kept_and_for_a_number_of_seconds() -> None:
    @tool(idempotent=True, cache_for=300)
    async def read() -> None:
        """Read."""

    async def pay() -> None:
        """Pay."""

    assert definition(read).cache_for == 300
    with pytest.raises(TypeError, match="add idempotent=True, or no cache_for"):
        tool(cache_for=300)(pay)
    with pytest.raises(TypeError, match="a number of seconds, or 0 to keep nothing; not -1"):
        tool(idempotent=True, cache_for=-1)(pay)


def test_a_decorated_function_is_still_the_function() -> None:
    assert book.__name__ == "book"
    assert definition_of(time.sleep) is None


def test_an_async_function_runs_on_the_event_loop_and_a_plain_one_blocks() -> None:
    assert not definition(book).blocks
    assert definition(blocking_tools.count).blocks
    assert definition(blocking_tools.count).progress == "progress"


def test_a_plain_function_that_no_process_could_import_is_refused_with_the_remedy() -> None:
    def blocking(url: str) -> str:
        """Block."""
        return url

    with pytest.raises(TypeError, match=r"blocking: .* must be able to import it: define it at the top of a module"):
        tool(blocking)


def test_a_plain_wrapper_around_an_async_function_is_refused_with_the_remedy() -> None:
    async def inner() -> None:
        """Wait."""

    @wraps(inner)
    def wrapper() -> Any:
        return inner()

    with pytest.raises(TypeError, match=r"inner: its decorators hide that it is async: .*`async def`"):
        tool(wrapper)


def test_a_decorator_above_tool_is_refused_and_not_left_out() -> None:
    @tool
    async def inner() -> None:
        """Wait."""

    @wraps(inner)
    async def wrapper() -> None:
        await inner()

    with pytest.raises(TypeError, match=r"inner: .* put @tool above its other decorators"):
        definition_of(wrapper)
    assert definition(tool(wrapper)).function is wrapper


def test_a_generator_is_refused() -> None:
    async def stream() -> Any:
        """Stream."""
        yield 1

    def plain() -> Any:
        """Stream."""
        yield 1

    for generator in (stream, plain):
        with pytest.raises(TypeError, match="without `yield`"):
            tool(generator)


async def undocumented(x: int) -> int:
    return x


async def unannotated(x) -> int:  # type: ignore[no-untyped-def]
    """Has no types."""
    return 1


async def variadic(*xs: int) -> int:
    """Takes many."""
    return 1


async def positional(x: int, /) -> int:
    """Takes one by position."""
    return x


async def Shouting() -> int:
    """Has a name that is not a tool's."""
    return 1


async def assigned(x: int = Field(ge=1)) -> int:
    """Has its checks where a default belongs."""
    return x


async def opaque(x: Callable[[], int]) -> int:
    """Takes what JSON cannot say."""
    return x()


async def two(a: Progress, b: Progress) -> int:
    """Wants two."""
    return 1


async def unknown(x: Nowhere) -> int:  # type: ignore[name-defined]  # noqa: F821
    """Has an annotation that does not exist."""
    return 1


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (undocumented, "needs a docstring"),
        (unannotated, "annotate 'x'"),
        (variadic, "arguments come by name"),
        (positional, "arguments come by name"),
        (Shouting, "lower case"),
        (assigned, r"'x'.*: write x: Annotated\[TYPE, Field\(\.\.\.\)\] = DEFAULT"),
        (opaque, "JSON Schema"),
        (two, "one is enough"),
        (unknown, "top of a module"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_at_import(function: Callable[..., Any], reason: str) -> None:
    with pytest.raises(TypeError, match=f"{function.__qualname__}: .*{reason}"):
        tool(function)


class ByPython(BaseModel):
    model_config = ConfigDict(regex_engine="python-re")
    code: Annotated[str, Field(pattern="^(a+)+$")]


async def looking_ahead(x: Annotated[str, Field(pattern="(?=a)b")]) -> int:
    """Has a pattern that no linear engine takes."""
    return 1


async def compiled(x: dict[str, list[Annotated[str, Field(pattern=re.compile("^(a+)+$"))]]]) -> int:
    """Has a pattern that only looks harmless."""
    return 1


async def configured(x: ByPython | None = None) -> int:
    """Has a pattern of a model that chose its engine."""
    return 1


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (looking_ahead, "look-around"),
        (compiled, "without re.compile"),
        (configured, "without regex_engine"),
    ],
)
def test_a_pattern_that_a_text_could_hold_for_ever_is_refused(function: Callable[..., Any], reason: str) -> None:
    with pytest.raises(TypeError, match=rf"(?s){function.__qualname__}: .*{reason}") as refused:
        tool(function)
    assert "(?=a)b" in str(refused.value) or "'^(a+)+$'" in str(refused.value)
