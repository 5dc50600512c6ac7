"""Reads a tool's arguments out of a prompt, by the tool's JSON Schema."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from deadlinemesh.llm_proxy.providers import forms
from deadlinemesh.llm_proxy.providers.names import SOMEBODY, asked_about, called, looked_up
from deadlinemesh.llm_proxy.providers.words import ACRONYMS, COMMON, name_words, terms
from deadlinemesh.policy.patterns import TooLong, pattern_of
from deadlinemesh.vocabulary import ToolSpec

__all__ = ["PromptArguments", "arguments_of"]

_MOST_ITEMS = 16
_LED_IN = re.compile(r"\b(?:for|of|in|about|to|from|at|on|by)\s+(?:the\s+)?$", re.IGNORECASE)
_LED_IN_SMALL = re.compile(r"\b(?:for|of|in|about|from|at)\s+([a-z][\w-]+)")


@dataclass(frozen=True, slots=True)
class PromptArguments:
    """The arguments of one call, as read from a prompt."""

    values: dict[str, Any]
    evident: bool
    """True if every required value was in the clause itself and no value was guessed."""


def arguments_of(tool: ToolSpec, clause: str, prompt: str, *, must: bool = False) -> PromptArguments | None:
    """The arguments of `tool` in `clause`, a part of `prompt`. The required ones come first.

    Returns None if a required one is not found. With `must` it is made up instead.
    """
    properties = {name: forms.plain(declared) for name, declared in tool.schema.get("properties", {}).items()}
    required = [name for name in tool.schema.get("required", ()) if name in properties]
    values: dict[str, Any] = {}
    evident = bool(required)
    near, far = _Reader(tool, clause), _Reader(tool, prompt)
    for name in required:
        value = near.value(name, properties[name], required=True)
        if value is None:
            evident = False
            value = far.value(name, properties[name], required=True)
        if value is None:
            value = _assumed(name, properties[name], clause, must)
        if value is None and not must:  # with `must`, the schema's own null is accepted
            return None
        values[name] = value
    for name in properties:
        if name not in required and (value := near.value(name, properties[name], required=False)) is not None:
            values[name] = value
    return PromptArguments(values, evident and not near.guessed)


def _assumed(name: str, declared: Mapping[str, Any], clause: str, must: bool) -> Any:
    """A default or made-up value of a required argument that is not in the prompt, or None."""
    if "default" in declared:
        return declared["default"]
    if declared.get("examples"):
        return declared["examples"][0]
    if declared.get("enum"):
        return declared["enum"][0] if must else None
    if declared["type"] == "string" and (must or forms.kind_of(name, declared) == "text"):
        return clause.strip()
    made_up = {"boolean": True, "array": [], "object": {}}
    return made_up.get(declared["type"], declared.get("minimum", 1)) if must else None


class _Reader:
    """Reads values out of a text for one tool. Text that gave one value gives no other value."""

    def __init__(self, tool: ToolSpec, text: str) -> None:
        self._vocabulary = terms(f"{tool.name.replace('_', ' ')} {tool.description}")
        self._text = text
        self.guessed = False
        """True if an uncertain value was taken."""

    def value(self, name: str, declared: Mapping[str, Any], *, required: bool) -> Any:
        """The value of one argument, or None. An optional argument must be named in the text."""
        if "enum" in declared:
            return self._member(declared["enum"])
        match declared["type"]:
            case "number" | "integer":
                number = self._number(name, required)
                if number is not None and math.isinf(number):  # a number of four hundred digits
                    return None
                is_whole = number is not None and (declared["type"] == "integer" or number.is_integer())
                return int(number) if number is not None and is_whole else number
            case "boolean":
                return self._flag(name)
            case "array":
                return self._several(name, forms.plain(declared.get("items")))
            case "string":
                return self._string(name, declared, required)
        return None

    def _member(self, members: list[Any]) -> Any:
        for member in members:
            spoken = re.escape(str(member)).replace("_", r"[\s_-]")
            if re.search(rf"\b{spoken}\b", self._text, re.IGNORECASE):
                return member
        return None

    def _flag(self, name: str) -> bool | None:
        spoken = r"[\s_-]".join(map(re.escape, name_words(name)))
        if re.search(rf"\b(?:no|not|without|don't)\s+{spoken}\b", self._text, re.IGNORECASE):
            return False
        return True if re.search(rf"\b{spoken}\b", self._text, re.IGNORECASE) else None

    def _several(self, name: str, items: Mapping[str, Any]) -> list[Any] | None:
        found: list[Any] = []
        while (
            len(found) < _MOST_ITEMS and (value := self.value(name.removesuffix("s"), items, required=True)) is not None
        ):
            if value in found:
                break  # a member of an enum stays in the text and would be found again
            found.append(value)
        return found or None

    def _number(self, name: str, required: bool) -> float | None:
        unit = forms.unit_of(name)
        if unit is not None and (match := forms.DURATION.search(self._text)):
            self._take(match)
            return forms.seconds_of(match) / unit
        for word in map(re.escape, name_words(name)):
            called = rf"\b{word}\s*(?:=|:|of|is|to)?\s*(\d+(?:\.\d+)?)\b|\b(\d+(?:\.\d+)?)\s+{word}"
            if match := re.search(called, self._text, re.IGNORECASE):
                return float(self._take(match))
        if forms.is_count(name) and (match := forms.COUNT.search(self._text)):
            return float(self._take(match))
        if required and (match := forms.NUMBER.search(self._text)):
            return float(self._take(match).replace(",", ""))
        return None

    def _string(self, name: str, declared: Mapping[str, Any], required: bool) -> str | None:
        kind = forms.kind_of(name, declared)
        if kind == "expression":
            return forms.expression_in(self._text)
        if kind == "symbol":
            return self._symbol() or (self._name(name, kind) or "").upper() or None
        if kind == "code":
            return self._first(forms.FENCED) or self._first(forms.QUOTED) or self._first(forms.AFTER_COLON)
        if "pattern" in declared and (match := _of_pattern(declared["pattern"], self._text)):
            return self._take(match, whole=True)
        if kind in forms.FORMS and (match := forms.FORMS[kind].search(self._text)):
            return self._take(match, whole=True)
        if not required and kind in ("text", *forms.FORMS):
            return None
        if quoted := self._first(forms.QUOTED):
            return quoted
        if kind == "text":
            self.guessed = True
            return (self._first(forms.TOPIC) or "").strip(" .?!") or None
        return self._after_its_name(name) or (self._name(name, kind) if required else None)

    def _symbol(self) -> str | None:
        for match in forms.TICKER.finditer(self._text):
            if match[1] not in ACRONYMS:
                return self._take(match)
        return None

    def _after_its_name(self, name: str) -> str | None:
        spoken = r"[\s_-]".join(map(re.escape, name_words(name)))
        joint = r"(?:'s)?\s*(?:=|:|named|called|is)?\s*"
        match = re.search(rf"\b(?i:{spoken}){joint}({forms.PROPER.pattern})", self._text)
        return self._take(match) if match and match[1] not in ACRONYMS else None

    def _name(self, name: str, kind: str) -> str | None:
        """The likeliest name in the text.

        The order: after a preposition, anywhere else, all in capitals, in small letters.
        """
        found = [match for match in forms.PROPER.finditer(self._text) if self._may_be_name(match[0])]
        found.sort(key=lambda match: (match[0].isupper(), not _LED_IN.search(self._text[: match.start()])))
        if found:
            return self._take(found[0], whole=True)
        if kind == "id":
            return None  # an id has digits or capitals
        if not SOMEBODY.isdisjoint(name_words(name)):
            but = self._vocabulary
            place = called(name, self._text, but) or asked_about(self._text) or looked_up(self._text, but)
            return self._guess(place) if place else None
        for match in _LED_IN_SMALL.finditer(self._text):
            if match[1] not in COMMON and not terms(match[1]) & self._vocabulary:
                self.guessed = True
                return self._take(match)
        return None

    def _guess(self, place: tuple[int, int]) -> str:
        self.guessed = True
        start, end = place
        found = self._text[start:end]
        self._text = f"{self._text[:start]} {self._text[end:]}"
        return found

    def _may_be_name(self, text: str) -> bool:
        if text in ACRONYMS or text.lower() in COMMON:
            return False
        return not terms(text) <= self._vocabulary | {"find", "run", "calculate"}

    def _first(self, form: re.Pattern[str]) -> str | None:
        match = form.search(self._text)
        return self._take(match).strip() or None if match else None

    def _take(self, match: re.Match[str], *, whole: bool = False) -> str:
        """Remove a match from the text. Returns its first matching group, or the `whole` match."""
        self._text = f"{self._text[: match.start()]} {self._text[match.end() :]}"
        return match[0] if whole else next((group for group in match.groups() if group is not None), match[0])


def _of_pattern(pattern: str, text: str) -> re.Match[str] | None:
    """The first word of `text` that fits `pattern`, from an argument's schema."""
    try:
        compiled = pattern_of(pattern)
    except ValueError:  # not matched in linear time: tools of other tool-runners are unchecked
        return None
    for word in re.finditer(r"[^\s,;?!]*[^\s,;?!.]", text):
        with suppress(TooLong):
            if compiled.found_in(word[0]):
                return word
    return None
