"""URL templates, as `https://host/customers/{customer}/files/{file:path}`.

The policy has checked their form. Some servers decode a path before they split it, some decode it
twice, and some treat look-alikes of `/` as `/`. So an argument in a path is refused if any such
reading would change the path's segments. A query has no segments: there an argument is only
percent-encoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from deadlinemesh.policy.model import PLACEHOLDER, url_arguments

__all__ = ["UnfitArgument", "UrlTemplate", "as_text"]

MOST_DECODINGS = 4
"""Times that an argument may be percent-encoded. No legitimate one needs more."""

LONGEST_ARGUMENT = 8192
"""Characters of an argument in a path. Servers accept no longer ones, and each is decoded several
times.
"""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_UTF16 = re.compile(r"%[uU]([0-9a-fA-F]{4})")
"""IIS's second encoding of a character, `%uXXXX`, besides percent-encoding."""


_HALFWIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
"""Maps the fullwidth forms of ASCII to ASCII. Some servers and file systems treat them as equal."""


class UnfitArgument(ValueError):
    """An argument that would lead to an endpoint other than the template's."""


class UrlTemplate:
    """A URL with `{argument}` and `{argument:path}` parts, which are filled in percent-encoded."""

    def __init__(self, template: str) -> None:
        parts = urlsplit(template)
        self.origin = f"{parts.scheme}://{parts.netloc}".lower()
        """Scheme, host and port. Connections are counted by origin."""
        self.arguments = frozenset(url_arguments(template))
        self._path, _, self._query = template.partition("?")
        self._segments = [part for part in self._path.split("/") if PLACEHOLDER.search(part)]

    def fill(self, arguments: Mapping[str, Any]) -> str:
        """The URL for these arguments.

        Raises UnfitArgument for an argument that would change the path's segments.
        """
        for segment in self._segments:
            for name, path in PLACEHOLDER.findall(segment):
                if unfit := _unfit(as_text(arguments[name]), bool(path)):
                    raise UnfitArgument(f"{name}: {unfit}")
            # Two arguments, or one and the text beside it, may together form a forbidden text.
            if unfit := _unfit(_joined(segment, arguments), ":path}" in segment):
                names = ", ".join(url_arguments(segment))
                raise UnfitArgument(f"{names}: together with the text beside it, it {unfit}")
        path = _filled(self._path, arguments)
        return f"{path}?{_filled(self._query, arguments)}" if self._query else path


def as_text(value: Any) -> str:
    """A JSON value as text for a URL: a string unchanged, any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _unfit(text: str, path: bool) -> str:
    """Say why `text` cannot be a segment (with `path`, several); empty if it can."""
    if len(text) > LONGEST_ARGUMENT:
        return f"must not be longer than {LONGEST_ARGUMENT} characters"
    if path and "//" in f"/{text}/":
        return "must not be empty, begin or end with '/', or have '//'"
    for number, reading in enumerate(_readings(text)):
        if number > MOST_DECODINGS:
            return "must not be percent-encoded over and over"
        if "\ufffd" in reading and "\ufffd" not in text:
            return "must not have percent-encoded bytes that are not UTF-8"
        if _CONTROL.search(reading):
            return "must not have control characters, percent-encoded or not"
        if "\\" in reading:
            return "must not have '\\', percent-encoded or not"
        if reading.count("/") > (text.count("/") if path else 0):
            return f"must not have '/', percent-encoded{'' if path else ' or not'}"
        # Some servers drop the text after a ';', and some drop a space at the end.
        if any(segment.partition(";")[0].strip() in ("", ".", "..") for segment in reading.split("/")):
            return "must not be empty, '.' or '..', percent-encoded or not"
    return ""


def _readings(text: str) -> Iterator[str]:
    """Yield the readings of `text` that servers may use.

    These are the text unchanged, decoded, decoded twice and so on. In each, characters that look
    like ASCII are replaced by ASCII.
    """
    while True:
        yield text.translate(_HALFWIDTH)
        decoded = _UTF16.sub(lambda found: chr(int(found[1], 16)), text.translate(_HALFWIDTH))
        decoded = unquote_to_bytes(decoded.encode(errors="replace")).decode(errors="replace")
        if decoded == text:
            return
        text = decoded


def _joined(segment: str, arguments: Mapping[str, Any]) -> str:
    """A template's segment with its arguments filled in unencoded.

    Slashes that the template's own text encodes are masked, because the policy's author wrote them
    on purpose.
    """
    literals, names, _ = (PLACEHOLDER.split(segment)[part::3] for part in range(3))
    values = [as_text(arguments[name]) for name in names]
    meant = [re.sub(r"[/\\]", "_", unquote(literal)) for literal in literals]
    return "".join(text for pair in zip(meant, [*values, ""], strict=True) for text in pair)


def _filled(part: str, arguments: Mapping[str, Any]) -> str:
    def value(found: re.Match[str]) -> str:
        return quote(as_text(arguments[found[1]]), safe="/" if found[2] else "", errors="replace")

    return PLACEHOLDER.sub(value, part)
