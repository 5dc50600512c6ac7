"""Names in small letters: `look up customer globex`, `how is acme corp doing?`.

A capital tells a name from a word; here only its place does, and that it is no word that usually stands there.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from deadlinemesh.llm_proxy.providers.words import COMMON, name_words, terms

__all__ = ["SOMEBODY", "asked_about", "called", "looked_up"]

SOMEBODY = frozenset(
    "customer client account company organisation organization contact supplier vendor".split()  # noqa: SIM905  # prose
)
"""What a tool's argument is called if it takes whoever a question such as `how is globex doing?` is about."""

_NO_NAMES = frozenset(
    """account accounts base business call calls care churn complaint complaints count data detail details email entry
    everybody everyone everything experience feedback history id identifier info information journey last life list long
    loyalty manager many money name names number numbers onboarding order orders people phone policy policies portal
    profile quickly question questions record records relations renewal renewals report request requests research
    retention right satisfaction segment segments service services state status success summary support survey team
    terms things ticket tickets time today work world called named""".split()  # noqa: SIM905  # prose
)
"""Words that follow `customer`, or stand where a name might, and are none."""

_WORD = r"[a-z0-9][\w&-]*"
_WORDS = rf"{_WORD}(?:\s+{_WORD}){{0,2}}"
"""No more than three: what is tried at each place of a prompt must not depend on its length."""
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
    """Where the name stands whose bearer's state is asked for, in whatever letters."""
    return _named(_ASKED_ABOUT, text)


def called(name: str, text: str, but: Collection[str]) -> tuple[int, int] | None:
    """Where the name stands that follows an argument's own `name`. Words whose terms are among `but` are none."""
    spoken = r"[\s_-]".join(map(re.escape, name_words(name)))
    joint = r"(?:\s*(?:=|:)\s*|\s+(?:(?:named|called|is)\s+)?)"
    return _named(re.compile(rf"\b(?i:{spoken}){joint}(?P<after>{_WORDS})"), text, but)


def looked_up(text: str, but: Collection[str]) -> tuple[int, int] | None:
    """Where the name stands that a preposition or else a verb leads to, with `but` as in `called`."""
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
