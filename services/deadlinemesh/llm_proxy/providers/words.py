"""Words for comparison in the scripted model: stemmed, with common synonyms folded together."""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["ACRONYMS", "COMMON", "GENERIC", "name_words", "terms"]

_WORD = re.compile(r"[A-Za-z][A-Za-z']*")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


COMMON = _words(
    """a about after again all also am an and any are as at be before but by can could did do does for from had has have
    he her here hi his how i if in into is it its just let like may me more my need no not now of on one only or our
    out over please she should so some tell than thank that the their them then there these they this those to today too
    up us very want was we were what what's when where which while who whose why will with would yes you your
    hello hey give show write explain describe first finally next using via given each every between"""
)
"""Words that do not help to find the tool."""

ACRONYMS = _words("AI API CEO CPU CRM CSV DB EU FAQ GPU HTTP ID JSON LLM MCP PDF RPC SQL UK URL US USD EUR XML OK I A")
"""Words in capitals that are no stock symbol and no customer."""

_SYNONYMS = (
    "find search lookup look fetch get retrieve query check",
    "run execute start perform launch",
    "market quote price stock share ticker trading",
    "customer client account crm",
    "calculate calculator compute evaluate arithmetic math sum calculation",
    "weather forecast temperature rain",
    "email mail",
    "wait sleep pause delay",
    "document doc docs knowledge article",
    "code python script program",
    "order purchase",
    "invoice bill billing",
)


def _stem(word: str) -> str:
    word = word.lower().removesuffix("'s")
    for suffix, ending in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        root = word.removesuffix(suffix)
        if root != word and len(root) >= 3 and not word.endswith("ss"):
            doubled = suffix in ("ing", "ed") and root[-1] == root[-2] and root[-1] not in "ls"
            return (root[:-1] if doubled else root + ending).removesuffix("e")
    return word.removesuffix("e") if len(word) > 3 else word


_FOLDED = {_stem(word): group.split()[0] for group in _SYNONYMS for word in group.split()}

GENERIC = frozenset({"find", "run", _stem("use"), _stem("call"), _stem("data"), _stem("task")})
"""Terms that many tools share. They have less weight."""


def name_words(name: str) -> tuple[str, ...]:
    """The words of an identifier, in lower case.

    `maxResults` and `max_results` both give max, results.
    """
    return tuple(part.lower() for part in re.split(r"[_\-.\s]+", _CAMEL.sub("_", name)) if part)


@lru_cache(maxsize=4096)
def terms(text: str) -> frozenset[str]:
    """The terms of `text`: its words without common ones, stemmed and folded."""
    words = (word for word in _WORD.findall(text) if word.lower() not in COMMON)
    return frozenset(_FOLDED.get(stem, stem) for stem in map(_stem, words))
