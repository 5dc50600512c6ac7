"""Links, paths and commands in the documentation exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from deadlinemesh.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("clients/*/README.md"),
        *ROOT.glob("k8s/**/*.md"),
        *ROOT.glob("tests/*/README.md"),
    ]
)
HISTORY = {"CHANGELOG.md"}
"""Pages that name what was, too."""


def named(pages: list[Path], pattern: str) -> list[tuple[Path, str]]:
    return [(page, found) for page in pages for found in re.findall(pattern, page.read_text("utf-8"), re.MULTILINE)]


def short(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in HISTORY], ids=short)
def test_named_files_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    paths = re.findall(r"`((?:tests|services|docs|benchmarks|scripts|clients|k8s|protos)/[\w./-]+?)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def commands() -> set[str]:
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    return names | {str(group.name) for group in app.registered_groups}


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_named_commands_exist(page: Path) -> None:
    found = set(re.findall(r"(?:`|^\s*)dmesh ([a-z][a-z-]*)\b", page.read_text("utf-8"), re.MULTILINE))
    assert {one for one in found if one not in commands()} == set()


def test_named_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert [one for one in named(PAGES, r"`make ([a-z][a-z-]*)") if one[1] not in targets] == []


def test_picture_of_the_packages_is_fresh() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "draw_house.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
