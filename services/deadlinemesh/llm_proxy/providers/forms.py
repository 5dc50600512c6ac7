"""The forms of argument values, and the kind of value that an argument takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from deadlinemesh.llm_proxy.providers.words import name_words

__all__ = [
    "AFTER_COLON",
    "COUNT",
    "DURATION",
    "FENCED",
    "FORMS",
    "NUMBER",
    "PROPER",
    "QUOTED",
    "TICKER",
    "TOPIC",
    "bare",
    "expression_in",
    "has_its_form",
    "is_count",
    "kind_of",
    "plain",
    "seconds_of",
    "unit_of",
]

QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|(?<!\w)'([^']+)'(?!\w)|`([^`]+)`")
FENCED = re.compile(r"```(?:\w*\n)?(.*?)```", re.DOTALL)
AFTER_COLON = re.compile(r":\s+(.+)", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?![\w.]*[A-Za-z])")
TICKER = re.compile(r"(?<![\w-])\$?([A-Z]{2,5})(?![\w-])")
PROPER = re.compile(r"(?<![\w-])[A-Z][\w&-]*(?:\s+[A-Z][\w&-]*)*")
TOPIC = re.compile(r"\b(?:for|about|on|regarding|saying|that says)\b:?\s+(.+)|:\s+(.+)", re.DOTALL)
COUNT = re.compile(
    r"\b(?:top|first|last|up to|at most)\s+(\d+)"
    r"|\b(\d+)\s+(?:\w+\s+)?(?:results?|documents?|items?|entries|rows|matches)\b"
)
DURATION = re.compile(
    r"\b(\d+(?:\.\d+)?|an?|one|two|three|four|five|ten)[\s-]*"
    r"(ms|milliseconds?|s|secs?|seconds?|mins?|minutes?|m|hours?|h)\b",
    re.IGNORECASE,
)
FORMS = {
    "url": re.compile(r"https?://[^\s\"'<>]*[^\s\"'<>.,;:!?)]"),
    "email": re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"),
    "date": re.compile(r"\b(?:\d{4}-\d{2}-\d{2}|today|tomorrow|yesterday)\b", re.IGNORECASE),
    "timezone": re.compile(r"\b[A-Z][A-Za-z]+/[A-Z][A-Za-z_]+\b|\b(?:UTC|GMT)\b"),
    "path": re.compile(r"(?<!\S)[\w.~-]*/[\w./-]*\w|\b[\w-]+\.[a-z]{2,4}\b"),
    "id": re.compile(
        r"\b[0-9a-f]{8}-[0-9a-f-]{27}\b|\b[A-Za-z]{1,8}-\d[\w-]*|\b[A-Z]{1,5}\d{2,}\b|(?<=#)\d+|\b\d{3,}\b"
    ),
}

_AMOUNTS = {"a": 1.0, "an": 1.0, "one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 5.0, "ten": 10.0}
_UNITS = {"ms": 0.001, "milli": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_IN_SECONDS = {
    "seconds": 1.0,
    "secs": 1.0,
    "s": 1.0,
    "ms": 0.001,
    "milliseconds": 0.001,
    "minutes": 60.0,
    "hours": 3600.0,
}
_DURATIONS = {"duration", "delay", "timeout", "wait"}
_COUNTS = {"k", "n", "top", "limit", "count", "max", "results"}
_KINDS = {
    "expression": {"expression", "expr", "formula", "equation"},
    "symbol": {"symbol", "ticker"},
    "url": {"url", "uri", "link"},
    "email": {"email", "recipient"},
    "code": {"code", "script", "source", "program", "snippet"},
    "date": {"date", "day", "since", "until"},
    "timezone": {"timezone", "tz"},
    "path": {"path", "file", "filename"},
    "id": {"id", "identifier", "reference", "number"},
    "text": {
        *("query", "text", "question", "prompt", "message", "input", "content", "body", "topic", "search", "term"),
        *("keywords", "note", "task", "subject"),
    },
}
_FORMATS = {"uri": "url", "email": "email", "date": "date"}

_CALCULATED = r"[\d .,()+*/%^-]*"
_FUNCTION = r"\b(?:sqrt|abs|min|max|round|log|exp|sin|cos)\("
_EXPRESSION = re.compile(rf"(?:{_FUNCTION}|[\d(]){_CALCULATED}(?:{_FUNCTION}{_CALCULATED})*")
_OPERATION = re.compile(r"\d\s*[)]*\s*[-+*/%^]+\s*[(]*\s*(?:[\d(]|[a-z]+\()|[a-z]\(")
_NO_ARITHMETIC = re.compile(r"```.*?```|https?://\S+|\b\d{4}-\d\d-\d\d\b", re.DOTALL)
_SPOKEN = tuple(
    (re.compile(rf"(?<=[\d)])\s*{spoken}\s*(?=[\d(])"), symbol)
    for spoken, symbol in (
        (r"%\s*of\s", "/100*"),
        (r"\splus\s", "+"),
        (r"\sminus\s", "-"),
        (r"(?:\s(?:times|multiplied by|x)\s|×)", "*"),
        (r"(?:\s(?:divided by|over)\s|÷)", "/"),
    )
)


def bare(text: str) -> str:
    """`text` with arithmetic in symbols, so that its words do not match the names of tools."""
    for pattern, symbol in _SPOKEN:
        text = pattern.sub(symbol, text)
    return text


def expression_in(text: str) -> str | None:
    """The first arithmetic expression in `text`, in symbols."""
    for match in _EXPRESSION.finditer(bare(_NO_ARITHMETIC.sub(" ", text))):
        expression = match[0].strip(" ,.%^+*/-")
        while expression.count(")") > expression.count("(") and expression.endswith(")"):
            expression = expression[:-1]
        if _OPERATION.search(expression):
            return expression
    return None


def has_its_form(kind: str, text: str) -> bool:
    """True if `text` holds a value that only an argument of this kind has."""
    if kind == "expression":
        return expression_in(text) is not None
    return kind in ("url", "email") and bool(FORMS[kind].search(text))


def seconds_of(duration: re.Match[str]) -> float:
    """The seconds of a match of DURATION."""
    amount, unit = duration[1].lower(), duration[2].lower()
    scale = next(scale for prefix, scale in _UNITS.items() if unit.startswith(prefix))
    return (_AMOUNTS[amount] if amount in _AMOUNTS else float(amount)) * scale


def unit_of(name: str) -> float | None:
    """The unit of a duration called `name`, in seconds. None if `name` is no duration."""
    words = name_words(name)
    return next((_IN_SECONDS[word] for word in words if word in _IN_SECONDS), 1.0 if _DURATIONS & set(words) else None)


def is_count(name: str) -> bool:
    """True if a number called `name` is a count of wanted items."""
    return bool(_COUNTS & set(name_words(name)))


def kind_of(name: str, declared: Mapping[str, Any]) -> str:
    """The kind of value that an argument takes, by its type, its format and its name."""
    if declared.get("type") in ("number", "integer"):
        return "number"
    if declared.get("format") in _FORMATS:
        return _FORMATS[declared["format"]]
    words = set(name_words(name))
    return next((kind for kind, names in _KINDS.items() if names & words), "name")


def plain(declared: Any) -> dict[str, Any]:
    """A property's schema with a single `type`: the first one that is not null, also in `anyOf`."""
    if not isinstance(declared, Mapping):
        return {"type": "string"}
    for option in declared.get("anyOf", ()):
        if isinstance(option, Mapping) and option.get("type") != "null":
            return plain({**option, **{key: value for key, value in declared.items() if key != "anyOf"}})
    types = declared.get("type", "string")
    if isinstance(types, list):
        types = next((name for name in types if name != "null"), "string")
    return {**declared, "type": types}
