"""An HTTP tool's URL filled with a model's arguments: a line of JSON with the template, and one with them."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from pydantic import ValidationError
from tests.fuzz.reading import json_lines

from deadlinemesh.policy.model import HttpTool
from deadlinemesh.tool_runner.kinds.url import UnfitArgument, UrlTemplate

JSON_LINES = True


def target(data: bytes) -> None:
    written, given = (*json_lines(data), None, None)[:2]
    try:
        url = HttpTool(url=written, description="Looks.").url
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
    assert after.path.count("/") == before.path.count("/")
    for was, segment in zip(before.path.split("/"), after.path.split("/"), strict=True):
        assert was == segment or unquote(segment) not in ("", ".", "..")
    assert after.query.count("&") == before.query.count("&")
