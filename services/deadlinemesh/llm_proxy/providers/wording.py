"""The texts of the scripted model: before tool calls, after their results, and without tools."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deadlinemesh.llm_proxy.providers.intent import Wish

__all__ = ["Result", "announcement", "direct", "parsed", "summary"]

_MOST_NESTED = 50
"""Levels of JSON that is reported by its fields, with recursion. Deeper JSON is treated as text."""

_LONGEST_PARSED = 16_384
"""Characters of JSON that is reported by its fields. Longer JSON is text, and only its beginning is
used."""

_MOST_FACTS = 10
_LONGEST_FACT = 240
_FAILED = re.compile(
    r"\W*(?:(?:error|failed|failure|cut|cancelled|unknown tool|no tool)\b"
    r"|(?:\S+\s+){1,3}(?:failed|was cut|was not run|timed out)\b)",
    re.IGNORECASE,
)
"""The beginning of a result that reports a failure. Only the beginning is matched: a search would
try each start with each end of a text without words."""

_GREETING = re.compile(r"\W*(?:hi|hello|hey|good (?:morning|afternoon|evening))\b", re.IGNORECASE)
_THANKS = re.compile(r"\W*(?:thanks|thank you)\b", re.IGNORECASE)
_LENGTH = re.compile(r"\b(\d{2,5})[\s-]words?\b", re.IGNORECASE)
_AT_LENGTH = re.compile(r"\b(?:long|essay|story|report|article|detailed|at length|everything)\b", re.IGNORECASE)
_ABOUT = re.compile(r"\b(?:about|on|of|is|are|explain|describe)\s+(?:the\s+|an?\s+)?(.+)", re.IGNORECASE | re.DOTALL)
_WORDS_AT_LENGTH = 400
_MOST_WORDS = 20_000

_OPENINGS = (
    "Let me start with what matters about {0}.",
    "A good way into {0} is to ask what it is for.",
    "There is much to say about {0}.",
)
_SENTENCES = (
    "Whoever works with {0} learns soon that the details decide.",
    "The first lesson of {0} is to know how much time there is, and to spend it on purpose.",
    "Seen from nearby, {0} looks like many small steps, each of which can be late.",
    "Seen from afar, {0} is one promise, and a promise has an end.",
    "Some would leave {0} for tomorrow; those who plan for it today are seldom surprised.",
    "Every part of {0} that waits makes another part wait, until somebody counts the seconds.",
    "It helps to write down what {0} needs, what it costs, and who is waiting for it.",
    "When {0} goes well nobody notices, which is how it should be.",
    "Half of {0} is knowing when to stop.",
    "And so {0} goes on, a little further with each sentence.",
)


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a tool call."""

    tool: str
    arguments: Mapping[str, Any]
    content: str

    @property
    def failed(self) -> bool:
        """True if the content seems to report a failure or a cut."""
        value = parsed(self.content)
        if isinstance(value, dict):
            return "error" in value or str(value.get("status", "")).lower() in ("failed", "error", "cut")
        return isinstance(value, str) and bool(_FAILED.match(value[:_LONGEST_FACT]))


def announcement(wishes: Sequence[Wish]) -> str:
    """The text before tool calls."""
    return f"I'll use {_listed([_call(wish.tool, wish.arguments) for wish in wishes])}. "


def summary(results: Sequence[Result], missing: Sequence[Wish]) -> str:
    """The final answer: the tools' results, then the failed calls and the calls not made."""
    good = [
        f"{_call(result.tool, result.arguments)}: {_facts(result.content)}." for result in results if not result.failed
    ]
    bad = [
        f"{_call(result.tool, result.arguments)} gave no result: {_shortened(_plain(result.content))}."
        for result in results
        if result.failed
    ]
    unasked = (
        [f"I did not get to ask {_listed([_call(wish.tool, wish.arguments) for wish in missing])}."] if missing else []
    )
    opening = ["Here is what I found."] if good else ["I could not find this out."]
    return " ".join(part.replace("..", ".") for part in opening + good + bad + unasked)


def direct(prompt: str, chance: random.Random) -> str:
    """An answer without tools."""
    if _GREETING.match(prompt) and len(prompt.split()) < 8:
        return "Hello! Tell me what to look up, work out or run, and how long I may take."
    if _THANKS.match(prompt):
        return "You are welcome."
    wanted = _LENGTH.search(prompt)
    words = min(int(wanted[1]), _MOST_WORDS) if wanted else _WORDS_AT_LENGTH if _AT_LENGTH.search(prompt) else 0
    if words:
        return _at_length(_topic(prompt), words, chance)
    return (
        f"You said: “{_shortened(prompt)}” I am the scripted model that comes with the mesh: I read prompts, call "
        "tools and report what they say, but know nothing beyond that. No tool that I was offered fits this request."
    )


def _at_length(topic: str, words: int, chance: random.Random) -> str:
    said = chance.choice(_OPENINGS).format(topic).split()
    while len(said) < words:
        for sentence in chance.sample(_SENTENCES, len(_SENTENCES)):
            said += sentence.format(topic).split()
    return " ".join(said[:words]).rstrip(".,;:") + "."


def _topic(prompt: str) -> str:
    first = re.split(r"(?<=[.?!])\s", prompt.strip(), maxsplit=1)[0]
    match = _ABOUT.search(first)
    return _shortened((match[1] if match else first).strip(" .?!\n"), 80) or "this"


def _call(tool: str, arguments: Mapping[str, Any]) -> str:
    given = ", ".join(f"{name} {_shortened(_plain_value(value), 60)}" for name, value in arguments.items())
    return f"{tool} ({given})" if given else tool


def _facts(content: str) -> str:
    value = parsed(content)
    facts = list(_flat(value, ""))
    more = f", and {len(facts) - _MOST_FACTS} more" if len(facts) > _MOST_FACTS else ""
    return ", ".join(facts[:_MOST_FACTS]) + more or "nothing"


def _flat(value: Any, name: str) -> list[str]:
    if isinstance(value, dict):
        return [fact for key, inner in value.items() for fact in _flat(inner, str(key).replace("_", " "))]
    if isinstance(value, list) and any(isinstance(inner, (dict, list)) for inner in value):
        return [fact for inner in value for fact in _flat(inner, name)]
    said = _shortened(_plain_value(value))
    return [f"{name} {said}".strip()] if said else []


def parsed(content: str) -> Any:
    """The JSON value in `content`. Without JSON, or with too deeply nested JSON, `content` itself.

    Content of more than _LONGEST_PARSED characters is not parsed: its beginning is returned.
    """
    if len(content) > _LONGEST_PARSED:
        return content[:_LONGEST_PARSED]
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return content
    level = [value]
    for _ in range(_MOST_NESTED):
        level = [inner for one in level if isinstance(one, (dict, list)) for inner in _inner(one)]
    return content if level else value


def _inner(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _plain(content: str) -> str:
    value = parsed(content)
    if isinstance(value, dict):
        value = value.get("error", value)
        return str(value.get("message", value)) if isinstance(value, dict) else str(value)
    return _plain_value(value)


def _plain_value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain_value, value))
    if isinstance(value, str):
        return " ".join(value.split()).rstrip(".")
    return json.dumps(value, ensure_ascii=False)


def _shortened(text: str, longest: int = _LONGEST_FACT) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else text[:longest].rsplit(" ", 1)[0] + " …"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
