"""Finds names in small letters: `look up customer globex`, `how is acme corp doing?`.

A capital distinguishes a name from a word. In small letters only the position does, together with a
list of common words that are no names.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from deadlinemesh.llm_proxy.providers.words import COMMON, name_words, terms

__all__ = ["SOMEBODY", "asked_about", "called", "looked_up"]

SOMEBODY = frozenset(
    "customer client account company organisation organization contact supplier vendor".split()  # noqa: SIM905  # prose
)
"""Names of arguments that take the subject of a question such as `how is globex doing?`."""

_NO_NAMES = frozenset(
    """account accounts base business call calls care churn complaint complaints count data detail details email entry
    everybody everyone everything experience feedback history id identifier info information journey last life list long
    loyalty manager many money name names number numbers onboarding order orders people phone policy policies portal
    profile quickly question questions record records relations renewal renewals report request requests research
    retention right satisfaction segment segments service services state status success summary support survey team
    terms things ticket tickets time today work world called named""".split()  # noqa: SIM905  # prose
)
"""Words that often follow `customer`, or are at the place of a name, without being one."""

_WORD = r"[a-z0-9][\w&-]*"
_WORDS = rf"{_WORD}(?:\s+{_WORD}){{0,2}}"
"""Up to three words: the work at each place of a prompt must not depend on the prompt's length."""
_ASKED_ABOUT = re.compile(
    rf"\bhow(?:\s+is|\s+are|['’]?s)\s+(?P<doing>{_WORDS}?)\s+(?:doing|going|faring|getting\s+on|coming\s+along)\b"
    rf"|\bhow['’]s\s+(?P<hows>{_WORDS}?)\s*\??$"
    rf"|\bwhat(?:\s+is|['’]?s)\s+(?:new|up|happening|going\s+on)\s+(?:with|at)\s+(?P<new>{_WORDS})"
    rf"|\bwhat\s+do\s+(?:we|you|i)\s+know\s+(?:about|of)\s+(?P<known>{_WORDS})",
    re.IGNORECASE,
)
_LED_IN = re.compile(rf"\b(?:for|of|in|about|from|at)\s+(?P<led>{_WORDS})")
_DONE_TO = re.compile(
    rf"\b(?:look|pull)\s+up\s+(?P<up>{_WORDS})|\b(?:lookup|check|find|fetch|get|show)\s+(?P<found>{_WORDS})"
    rf"|\bis\s+(?P<a>{_WORDS}?)\s+(?:an?|our)\b",
    re.IGNORECASE,
)


def asked_about(text: str) -> tuple[int, int] | None:
    """The start and end of the name in a question about somebody's state, in any letter case."""
    return _named(_ASKED_ABOUT, text)


def called(name: str, text: str, but: Collection[str]) -> tuple[int, int] | None:
    """The start and end of the name that follows an argument's own `name`.

    Words with terms in `but` are not names.
    """
    spoken = r"[\s_-]".join(map(re.escape, name_words(name)))
    joint = r"(?:\s*(?:=|:)\s*|\s+(?:(?:named|called|is)\s+)?)"
    return _named(re.compile(rf"\b(?i:{spoken}){joint}(?P<after>{_WORDS})"), text, but)


def looked_up(text: str, but: Collection[str]) -> tuple[int, int] | None:
    """The start and end of the name after a preposition, else after a verb.

    `but` is as in `called`.
    """
    return _named(_LED_IN, text, but) or _named(_DONE_TO, text, but)


def _named(form: re.Pattern[str], text: str, but: Collection[str] = ()) -> tuple[int, int] | None:
    for match in form.finditer(text):
        assert match.lastgroup is not None
        start = end = match.start(match.lastgroup)
        for word in re.finditer(_WORD, match[match.lastgroup], re.IGNORECASE):
            said = word[0].lower()
            if said in COMMON or said in _NO_NAMES or terms(said) & set(but):
                break
            end = start + word.end()
        if end > start and not text[start:end].isdigit():
            return start, end
    return None
