"""Break the kernel by hand, one line at a time, and see that a unit test or the simulation goes red.

    python tests/sim/mutants.py [--seeds 300] [--from 0] [--quick]

Prints a table; exits 1 when a mutant lives. The kernel's own files are not touched: each mutant is a copy,
tried in a forked process that has not imported the kernel yet.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

import hypothesis  # noqa: F401 - loaded once, before the forks
import pytest

ROOT = Path(__file__).resolve().parents[2]
for _folder in ("tests", "protos", "detectors"):
    sys.path.insert(0, str(ROOT / _folder))
KERNEL = "collector/gpuvigil_collector"
MUTANTS = tomllib.loads((ROOT / "tests/sim/mutants.toml").read_text())["mutant"]
WHOLE = {"name": "none", "file": "safety", "old": "authorise", "new": "authorise"}
UNIT_RED, SIMULATION_RED, STRANGE = 1, 2, 4


def judge(collector: Path, seeds: int, quick: bool) -> int:
    """In the forked process: try the unit tests, then the simulation; return what went red."""
    sys.path.insert(0, str(collector))
    names = ("gates", "budgets", "storms", "targets", "bad_state")
    files = [f"tests/unit/test_safety_{each}.py" for each in names]
    path = f"pythonpath={collector} detectors protos tests"
    red = UNIT_RED if pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-o", path, *files]) else 0
    from sim.fleet_sim import run

    if red and quick:
        return red
    import gpuvigil_collector.safety as kernel

    strange = STRANGE if not str(kernel.__file__).startswith(str(collector)) else 0
    return red | strange | (SIMULATION_RED if any(run(seed).wrong for seed in range(seeds)) else 0)


def try_one(mutant: dict[str, str], seeds: int, quick: bool) -> int:
    """Return what went red for a mutant."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / KERNEL, f"{folder}/{KERNEL}", ignore=shutil.ignore_patterns("__pycache__"))
        path = Path(folder) / KERNEL / f"{mutant['file']}.py"
        text = path.read_text()
        assert mutant["old"] in text, f"{mutant['name']}: its line is gone"
        path.write_text(text.replace(mutant["old"], mutant["new"]))
        child = os.fork()
        if child == 0:
            code = STRANGE
            try:
                silence = os.open(os.devnull, os.O_WRONLY)
                os.dup2(silence, 1)
                os.dup2(silence, 2)
                code = judge(Path(folder) / "collector", seeds, quick)
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> int:
    """Try each mutant and print who saw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--quick", action="store_true", help="no simulation where a unit test is red")
    given = parser.parse_args()
    os.chdir(ROOT)
    if try_one(WHOLE, given.seeds, False):
        print("the kernel is red without a mutant, or was not the copy")
        return 2
    alive = 0
    print(f"{'mutant':<42}{'unit':>6}{'simulation':>12}", flush=True)
    for mutant in MUTANTS[given.first :]:
        red = try_one(mutant, given.seeds, given.quick)
        alive += not red & (UNIT_RED | SIMULATION_RED)
        unit, simulation = ("red" if red & bit else "-" for bit in (UNIT_RED, SIMULATION_RED))
        print(
            f"{mutant['name']:<42}{unit:>6}{simulation:>12}{'  STRANGE' if red & STRANGE else ''}", flush=True
        )
    print(f"{len(MUTANTS) - given.first} mutants, {alive} alive")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
