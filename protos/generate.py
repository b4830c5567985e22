"""Generate the Python code of v1/*.proto beside it; `--check` tells whether the committed code is in sync."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
V1 = Path("gpuvigil_protos/v1")


def generate(out: Path) -> None:
    """Run protoc over every file of v1. Raises SystemExit with protoc's status."""
    sources = [str(path.relative_to(ROOT)) for path in sorted((ROOT / V1).glob("*.proto"))]
    arguments = ["protoc", f"-I{ROOT}", f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"]
    status = protoc.main([*arguments, *sources])
    if status:
        raise SystemExit(status)


def stale() -> list[str]:
    """Return the committed files that differ from what protoc makes now."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        made = sorted((Path(folder) / V1).iterdir())
        return [p.name for p in made if p.read_bytes() != _bytes(ROOT / V1 / p.name)]


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def main() -> int:
    """Generate, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    names = stale()
    if names:
        sys.stderr.write(f"generated code is out of date: {', '.join(names)}; run: make generate\n")
    return 1 if names else 0


if __name__ == "__main__":
    raise SystemExit(main())
