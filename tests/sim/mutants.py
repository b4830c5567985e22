"""Break the kernel by hand, one line at a time, and see that a unit test or the simulation goes red.

    python tests/sim/mutants.py [--seeds 1500]

Prints a table; exits 1 when a mutant lives. The kernel's own files are not touched: each mutant is a copy.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNEL = "collector/gpuvigil_collector"
MUTANTS = tomllib.loads((ROOT / "tests/sim/mutants.toml").read_text())["mutant"]


def red(command: list[str], where: Path) -> bool:
    """Tell whether a command fails with the mutant in front of the path."""
    path = os.pathsep.join(str(each) for each in (where / "collector", ROOT / "detectors", ROOT / "protos"))
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, timeout=600, capture_output=True
    )
    return done.returncode != 0


def try_one(mutant: dict[str, str], seeds: int, folder: Path) -> tuple[bool, bool]:
    """Return whether the unit tests and whether the simulation see the mutant."""
    shutil.copytree(ROOT / KERNEL, folder / KERNEL, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / KERNEL / f"{mutant['file']}.py"
    text = path.read_text()
    assert mutant["old"] in text, f"{mutant['name']}: its line is gone"
    path.write_text(text.replace(mutant["old"], mutant["new"]))
    tests = ["gates", "budgets", "storms", "targets", "bad_state"]
    unit = [f"tests/unit/test_safety_{each}.py" for each in tests]
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-o",
              f"pythonpath={folder}/collector detectors protos tests", *unit]  # fmt: skip
    sim = [sys.executable, "tests/sim/run.py", "--seeds", str(seeds), "--stop", "--kernel",
           str(folder / "collector")]  # fmt: skip
    return red(pytest, folder), red(sim, folder)


def main() -> int:
    """Try each mutant and print who saw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1500)
    given = parser.parse_args()
    alive = 0
    with tempfile.TemporaryDirectory() as folder:
        whole = {"name": "none", "file": "safety", "old": "authorise", "new": "authorise"}
        if any(try_one(whole, given.seeds, Path(folder))):
            print("the kernel is red without a mutant")
            return 2
    print(f"{'mutant':<42}{'unit':>6}{'simulation':>12}")
    for mutant in MUTANTS:
        with tempfile.TemporaryDirectory() as folder:
            unit, sim = try_one(mutant, given.seeds, Path(folder))
        alive += not (unit or sim)
        print(f"{mutant['name']:<42}{'red' if unit else '-':>6}{'red' if sim else '-':>12}", flush=True)
    print(f"{len(MUTANTS)} mutants, {alive} alive")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
