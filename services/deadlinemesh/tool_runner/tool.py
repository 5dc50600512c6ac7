"""`@tool` makes a Python function a tool.

An `async def` runs on the event loop, a plain `def` in a worker process. The decorator checks
everything about a function at once, so a mistake shows at start and not at a tenant's first call.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, get_type_hints, overload

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import SchemaError

from deadlinemesh.vocabulary import ToolSpec

__all__ = ["Definition", "Progress", "definition_of", "tool"]

_ATTRIBUTE = "__deadlinemesh_tool__"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")

Function = TypeVar("Function", bound=Callable[..., Any])


class Progress(Protocol):
    """The type of a parameter by which a tool reports progress.

    The parameter is not an argument for the model: the tool-runner fills it in. In tests any async
    callable will do.
    """

    def __call__(self, fraction: float, message: str = "") -> Awaitable[None]:
        """Report the tool's progress: `fraction` from 0 to 1, `message` for people.

        A plain function need not await it.
        """


@dataclass(frozen=True, slots=True)
class Definition:
    """A decorated function, with the facts that `@tool` derived from it."""

    function: Callable[..., Any]
    spec: ToolSpec
    origin: str
    arguments: type[BaseModel]
    """Validates arguments and converts them to the annotated types. A field's alias is the
    parameter's name.
    """
    progress: str | None
    """The name of the parameter of type `Progress`; None if there is none."""
    cache_for: float = 0.0
    """Seconds for which a result is kept; 0 keeps none."""

    @property
    def blocks(self) -> bool:
        """True for a plain function, because it needs a worker process."""
        return not inspect.iscoroutinefunction(self.function)

    def bind(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The function's keyword arguments. Raises pydantic's ValidationError."""
        bound = self.arguments.model_validate(arguments)
        return {str(field.alias): getattr(bound, name) for name, field in self.arguments.model_fields.items()}


@overload
def tool(function: Function) -> Function: ...
@overload
def tool(*, idempotent: bool = False, cache_for: float = 0.0) -> Callable[[Function], Function]: ...
def tool(
    function: Function | None = None, *, idempotent: bool = False, cache_for: float = 0.0
) -> Function | Callable[[Function], Function]:
    """Make a function a tool. A model sees its name, its docstring and its annotations.

    `idempotent` means that a second identical call does no harm, so it may be retried. `cache_for`
    is the number of seconds for which a result may be reused for the same tenant and arguments. The
    function itself is returned unchanged.

    Raises TypeError for a function that cannot be a tool. The message says what to write instead.
    """

    def decorate(decorated: Function) -> Function:
        setattr(decorated, _ATTRIBUTE, _define(decorated, idempotent, cache_for))
        return decorated

    return decorate if function is None else decorate(function)


def definition_of(candidate: object) -> Definition | None:
    """The Definition of a decorated function; None if `candidate` was not decorated.

    Raises TypeError for a wrapper around a tool. `functools.wraps` makes it look like the tool, but
    the wrapper would never be called.
    """
    found = getattr(candidate, _ATTRIBUTE, None) if inspect.isfunction(candidate) else None
    if not isinstance(found, Definition):
        return None
    if found.function is not candidate:
        raise TypeError(
            f"{found.origin}: what stands above @tool would be left out: put @tool above its other decorators"
        )
    return found


class _PlainSchema(GenerateJsonSchema):
    """A schema without pydantic's generated titles.

    They repeat the names, and a model would pay tokens for them.
    """

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _define(function: Callable[..., Any], idempotent: bool, cache_for: float) -> Definition:
    origin = f"{function.__module__}:{function.__qualname__}"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{origin}: a tool gives one answer: write it without `yield`, and tell how far it is by a Progress"
        )
    if not inspect.iscoroutinefunction(function):
        if inspect.iscoroutinefunction(inspect.unwrap(function)):
            raise TypeError(f"{origin}: its decorators hide that it is async: write their wrappers with `async def`")
        if "<locals>" in function.__qualname__:
            raise TypeError(
                f"{origin}: a plain function runs in a process of its own, which must be able to import it: define it at"
                " the top of a module"
            )
    if not _NAME.fullmatch(function.__name__):
        raise TypeError(f"{origin}: a tool's name is lower case letters, digits and underscores, at most 63")
    if not (math.isfinite(cache_for) and cache_for >= 0):
        raise TypeError(f"{origin}: cache_for is a number of seconds, or 0 to keep nothing; not {cache_for!r}")
    if cache_for and not idempotent:
        raise TypeError(
            f"{origin}: only an idempotent tool's results may be kept; add idempotent=True, or no cache_for"
        )
    description = inspect.getdoc(function)
    if not description:
        raise TypeError(f"{origin}: a tool needs a docstring; it is what the model is told about it")
    arguments, progress = _arguments(function, origin)
    try:
        schema = arguments.model_json_schema(schema_generator=_PlainSchema)
    except PydanticUserError as error:
        raise TypeError(f"{origin}: its arguments cannot be described as JSON Schema: {error}") from error
    schema.pop("title", None)
    schema.setdefault("properties", {})
    return Definition(
        function, ToolSpec(function.__name__, description, schema, idempotent), origin, arguments, progress, cache_for
    )


def _arguments(function: Callable[..., Any], origin: str) -> tuple[type[BaseModel], str | None]:
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TypeError(f"{origin}: its annotations must be defined at the top of a module: {error}") from error
    progress = None
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(
                f"{origin}: arguments come by name, so {parameter} cannot be filled; write plain parameters"
            )
        if name not in hints:
            raise TypeError(f"{origin}: annotate {name!r}; the model is told the types")
        if hints[name] is Progress:
            if progress is not None:
                raise TypeError(f"{origin}: both {progress!r} and {name!r} want a Progress; one is enough")
            progress = name
            continue
        if isinstance(parameter.default, FieldInfo):  # only a default, it checks nothing
            raise TypeError(
                f"{origin}: {name!r} has its checks in the place of its default: write {name}: Annotated[TYPE, Field(...)]"
                " = DEFAULT"
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        # A generated field name with the parameter's name as alias: a parameter may be called
        # `schema`, `copy` or `_x`, a model's field may not.
        fields[f"argument_{len(fields)}"] = (hints[name], Field(default, alias=name))
    try:
        model = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)
    except (PydanticUserError, SchemaError) as error:
        raise TypeError(f"{origin}: its arguments cannot be validated: {error}") from error
    if (pattern := _backtracking(model.__pydantic_core_schema__)) is not None:
        raise TypeError(
            f"{origin}: the pattern {pattern!r} would be matched by Python's re, which a model's text can hold for ever:"
            " give it as a plain text, without re.compile and without regex_engine"
        )
    return model, progress


def _backtracking(schema: Any) -> str | None:
    """Find a pattern that pydantic's schema leaves to Python's regex engine; None if there is none.

    A tool's own code may use that engine. Its annotations need not.
    """
    left: list[tuple[Any, bool]] = [(schema, False)]
    while left:
        part, by_python = left.pop()
        if isinstance(part, Mapping):
            config = part.get("config")
            engine = config.get("regex_engine") if isinstance(config, Mapping) else None
            by_python = engine == "python-re" if engine else by_python
            pattern = part.get("pattern") if part.get("type") == "str" else None
            if isinstance(pattern, re.Pattern):
                return str(pattern.pattern)
            if pattern is not None and part.get("regex_engine", "python-re" if by_python else "") == "python-re":
                return str(pattern)
            left += [(inner, by_python) for key, inner in part.items() if key not in ("default", "metadata")]
        elif isinstance(part, (list, tuple)):
            left += [(inner, by_python) for inner in part]
    return None
