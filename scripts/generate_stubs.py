"""Generate `services/deadlinemesh/v1` from `protos/`.

`--check` generates into a temporary folder instead and fails, naming the files, when the committed stubs differ.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUBS = ROOT / "services" / "deadlinemesh" / "v1"
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"

INIT = '"""Generated stubs of `protos/deadlinemesh/v1`. Run `make proto` to write them again; never edit them."""\n'


def _protoc(out: Path, plugins: list[str], files: list[Path]) -> None:
    arguments = ["protoc", f"-I{PROTOS}", f"-I{WELL_KNOWN}"]
    arguments += [f"--{plugin}_out={out}" for plugin in plugins]
    arguments += [str(file.relative_to(PROTOS)) for file in files]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")


def generate(out: Path) -> None:
    """Write the stubs of every proto file below the folder `out`, which stands for `services/`."""
    files = sorted((PROTOS / "deadlinemesh" / "v1").glob("*.proto"))
    _protoc(out, ["python", "pyi"], files)
    _protoc(out, ["grpc_python", "mypy_grpc"], [file for file in files if "\nservice " in file.read_text()])
    (out / "deadlinemesh" / "v1" / "__init__.py").write_text(INIT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the committed stubs are stale")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = Path(folder) / "deadlinemesh" / "v1"
        if not check:
            shutil.rmtree(STUBS, ignore_errors=True)
            shutil.copytree(fresh, STUBS)
            return 0
        names = {path.name for path in fresh.iterdir()} | {path.name for path in STUBS.glob("*.py*")}
        _, different, missing = filecmp.cmpfiles(fresh, STUBS, names, shallow=False)
        stale = sorted(different + missing)
        if stale:
            print("stale stubs, run `make proto`:", ", ".join(stale), file=sys.stderr)
        return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
