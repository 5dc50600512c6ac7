"""Finds the offered tools that a prompt asks for, clause by clause."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from deadlinemesh.llm_proxy.providers.arguments import arguments_of
from deadlinemesh.llm_proxy.providers.forms import bare, has_its_form, kind_of, plain
from deadlinemesh.llm_proxy.providers.names import SOMEBODY, asked_about
from deadlinemesh.llm_proxy.providers.words import GENERIC, name_words, terms
from deadlinemesh.vocabulary import ToolSpec

__all__ = ["Wish", "wishes"]

_PROTECTED = re.compile(r"```.*?```|https?://\S+|`[^`]*`|\"[^\"]*\"|“[^”]*”|\([^()]*\)", re.DOTALL)
_BREAK = re.compile(
    r"[.!?;]+(?:\s+|$)|\n\s*|,\s+(?:(?:and|then|also|finally)\b,?\s+)*"
    r"|\s(?:and|then|as well as)\s+(?:(?:then|also|finally)\s+)?|\bafter (?:that|which),?\s+",
    re.IGNORECASE,
)
_LATER = re.compile(r"\bthen\b|\bafter\b|\bfinally\b", re.IGNORECASE)

_OF_NAME, _OF_ENUM, _OF_PARAMETER, _OF_DESCRIPTION = 3.0, 2.0, 1.5, 1.0
_GENERIC_SHARE = 0.6
_FITS = 1.5
"""Least score of a tool that is meant. One of its arguments in the clause has it, or a word of its
name that many tools share."""
_FITS_TOO = 3.0
"""Least score of a further tool in the same clause. A word that only its name has gives it."""
_FORM_GIVEN = 4.0
"""Score for a value that only this tool's argument has, such as an arithmetic expression."""
_TAKES_ANYTHING = 0.75
"""Score for a search by free text, if the prompt asks to find something."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A call that the prompt asks for.

    Calls of one `step` may run in parallel. They run before those of the next step.
    """

    tool: str
    arguments: Mapping[str, Any]
    step: int

    @property
    def key(self) -> tuple[str, str]:
        """The tool and its arguments: equal for equal wishes."""
        return self.tool, json.dumps(self.arguments, sort_keys=True)


def wishes(prompt: str, tools: Sequence[ToolSpec], *, must: bool = False) -> list[Wish]:
    """The calls that `prompt` asks for, in its order, without duplicates.

    With `must` there is at least one, even if it fits badly.
    """
    offer = _Offer(tools)
    found: dict[tuple[str, str], Wish] = {}
    previous: ToolSpec | None = None
    for clause, step in _clauses(prompt, offer):
        meant = offer.meant_by(clause)
        continued = previous if not meant else None
        for tool in meant or ([previous] if previous is not None else []):
            arguments = arguments_of(tool, clause, prompt)
            if arguments is not None and (arguments.evident or continued is None):
                wish = Wish(tool.name, arguments.values, step)
                found.setdefault(wish.key, wish)
                previous = tool
    if must and tools and not found:
        tool = offer.best(prompt)
        arguments = arguments_of(tool, prompt, prompt, must=True)
        assert arguments is not None
        return [Wish(tool.name, arguments.values, 0)]
    return list(found.values())


def _clauses(prompt: str, offer: _Offer) -> list[tuple[str, int]]:
    """The parts of `prompt` that may each ask for a call, with their step.

    A part that neither names a tool nor gives other arguments to the previous one belongs to the
    part before: `search for cats and dogs` asks for one search.
    """
    guarded = [match.span() for match in _PROTECTED.finditer(prompt)]
    spans: list[tuple[int, int, int]] = []
    step = start = 0
    ends = [m for m in _BREAK.finditer(prompt) if not any(a < m.end() and m.start() < b for a, b in guarded)]
    for begin, end, divider in [*((m.start(), m.end(), m[0]) for m in ends), (len(prompt), len(prompt), "")]:
        clause = prompt[start:begin]
        if clause.strip():
            before = offer.meant_by(prompt[slice(*spans[-1][:2])]) if spans else []
            if before and not offer.meant_by(clause) and not _gives_others(before[-1], clause):
                spans[-1] = (spans[-1][0], begin, spans[-1][2])
            else:
                spans.append((start, begin, step))
        if _LATER.search(divider):
            step += 1
        start = end
    return [(prompt[begin:end].strip(), step) for begin, end, step in spans]


def _gives_others(tool: ToolSpec, clause: str) -> bool:
    properties = tool.schema.get("properties", {})
    if any(plain(properties.get(name))["type"] == "array" for name in tool.schema.get("required", ())):
        return False  # the tool takes all of them in one call
    arguments = arguments_of(tool, clause, clause)
    return arguments is not None and arguments.evident


class _Offer:
    """The offered tools, and the weight of each word for each tool."""

    def __init__(self, tools: Sequence[ToolSpec]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._weights = {tool.name: _weights(tool.name, tool.description, json.dumps(tool.schema)) for tool in tools}
        self._kinds = {
            tool.name: {kind_of(name, plain(declared)) for name, declared in tool.schema.get("properties", {}).items()}
            for tool in tools
        }
        self._somebody = next((tool for tool in tools if _takes_somebody(tool)), None)
        self._known: dict[str, list[ToolSpec]] = {}
        self._sharing = Counter(term for weights in self._weights.values() for term in weights)

    def meant_by(self, clause: str) -> list[ToolSpec]:
        """The tools that `clause` asks for, the likeliest first."""
        if clause not in self._known:
            self._known[clause] = self._find_meant(clause)
        return self._known[clause]

    def _find_meant(self, clause: str) -> list[ToolSpec]:
        left = terms(_PROTECTED.sub(" ", bare(clause)))
        meant: list[ToolSpec] = []
        while len(meant) < len(self._tools):
            scores = {name: self._score(name, left, clause) for name in self._tools if self._tools[name] not in meant}
            name = max(scores, key=scores.__getitem__)
            if scores[name] < (_FITS_TOO if meant else _FITS):
                break
            meant.append(self._tools[name])
            left -= self._weights[name].keys()
        return meant or ([self._somebody] if self._somebody is not None and asked_about(clause) else [])

    def best(self, prompt: str) -> ToolSpec:
        """The tool with the highest score, even if the score is low."""
        asked = terms(_PROTECTED.sub(" ", bare(prompt)))
        return max(self._tools.values(), key=lambda tool: self._score(tool.name, asked, prompt))

    def _score(self, name: str, asked: frozenset[str], clause: str) -> float:
        weights = self._weights[name]
        score = sum(
            weights[term] * (_GENERIC_SHARE if term in GENERIC else 1 / math.sqrt(self._sharing[term]))
            for term in asked & weights.keys()
        )
        kinds = self._kinds[name]
        if "text" in kinds and "find" in asked & weights.keys():
            score += _TAKES_ANYTHING
        return score + _FORM_GIVEN * any(has_its_form(kind, clause) for kind in kinds)


def _takes_somebody(tool: ToolSpec) -> bool:
    required = tool.schema.get("required", ())
    return len(required) == 1 and not SOMEBODY.isdisjoint(name_words(required[0]))


@lru_cache(maxsize=1024)
def _weights(name: str, description: str, schema_json: str) -> Mapping[str, float]:
    weights: dict[str, float] = {}

    def weigh(text: str, weight: float) -> None:
        for term in terms(text):
            weights[term] = max(weight, weights.get(term, 0.0))

    weigh(name.replace("_", " ").replace("-", " "), _OF_NAME)
    searches = "find" in weights  # then the description names the searched content
    weigh(description, _OF_PARAMETER if searches else _OF_DESCRIPTION)
    for parameter, declared in json.loads(schema_json).get("properties", {}).items():
        declared = plain(declared)
        weigh(parameter.replace("_", " "), _OF_PARAMETER)
        weigh(str(declared.get("description", "")), _OF_DESCRIPTION / 2)
        for member in declared.get("enum", ()):
            weigh(str(member), _OF_ENUM)
    return weights
