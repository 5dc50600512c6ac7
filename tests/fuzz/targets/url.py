"""An HTTP tool's URL filled with a model's arguments: a line of JSON with the template, and one with them."""

from __future__ import annotations

import re
from itertools import chain
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError
from tests.fuzz.reading import json_lines

from deadlinemesh.policy.model import PLACEHOLDER, HttpToolPolicy
from deadlinemesh.tool_runner.kinds.url import UnfitArgument, UrlTemplate

JSON_LINES = True

MOST_PATHS = 2
"""Arguments of several segments in one template; to tell more of them apart takes a regular expression too long."""

_LEADS_ELSEWHERE = re.compile(r"[/\\\x00-\x1f\x7f-\x9f]")
"""In one segment, after some server has decoded it."""


def target(data: bytes) -> None:
    written, given = (*json_lines(data), None, None)[:2]
    try:
        url = HttpToolPolicy(url=written, description="Looks.").url
    except ValidationError:
        return
    template = UrlTemplate(url)
    if not isinstance(given, dict) or not template.arguments <= set(given):
        return
    try:
        filled = template.fill(given)
    except UnfitArgument as unfit:
        assert len(str(unfit)) < 1000
        return
    before, after = urlsplit(url), urlsplit(filled)
    assert (after.scheme, after.netloc) == (before.scheme, before.netloc)
    assert after.query.count("&") == before.query.count("&")
    # The path is the template's but for its arguments: of each one segment or less, or several where it says so.
    literals, _, paths = (PLACEHOLDER.split(before.path)[part::3] for part in range(3))
    if len(paths) - paths.count("") > MOST_PATHS:
        return
    places = ["(.*)" if path else "([^/]*)" for path in paths]
    match = re.fullmatch(
        "".join(chain(*zip(map(re.escape, literals), [*places, ""], strict=True))), after.path, re.DOTALL
    )
    assert match is not None
    for place, value in zip(places, match.groups(), strict=True):
        decoded = [unquote(part) for part in value.split("/")] if place == "(.*)" else [unquote(value)]
        assert not any(_LEADS_ELSEWHERE.search(segment) for segment in decoded)
    for segment in set(after.path.split("/")) - set(before.path.split("/")):
        assert unquote(segment) not in ("", ".", "..")
