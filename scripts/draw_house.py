"""Draw the packages and their imports into `docs/architecture.md`.

An arrow from A to B means that a module of A imports one of B. Arrows that follow from others are left
out. `--check` changes nothing and fails when the picture is stale.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "services" / "deadlinemesh"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- the packages, by scripts/draw_house.py -->\n", "<!-- end -->\n"
LEFT_OUT = {"v1", "errors"}
"""Generated stubs, and the errors, which every package imports."""


def imports() -> dict[str, set[str]]:
    """For each package, or module beside the packages, those that it imports."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        importer = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                parts = name.split(".")
                if parts[0] == "deadlinemesh" and len(parts) > 1:
                    found[importer].add(parts[1])
    packages = {name for name in found if name not in LEFT_OUT and not name.startswith("__")}
    return {name: (found[name] & packages) - {name} for name in sorted(packages)}


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """`graph` without the arrows that follow from others."""

    def reached(start: str) -> set[str]:
        return {one for step in graph[start] for one in (step, *reached(step))}

    return {
        name: {one for one in to if not any(one in reached(other) for other in to - {one})}
        for name, to in graph.items()
    }


def picture() -> str:
    """The picture, as Mermaid."""
    lines = [f"    {name} --> {other}" for name, others in reduced(imports()).items() for other in sorted(others)]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the picture is stale")
    check = parser.parse_args().check
    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    fresh = f"{before}{BEGIN}{picture()}{END}{after}"
    if check:
        if fresh != page:
            print("docs/architecture.md: the picture is stale; run scripts/draw_house.py", file=sys.stderr)
        return int(fresh != page)
    PAGE.write_text(fresh, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
