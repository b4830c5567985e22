"""A lost GPU under a job, repaired on a real Slurm of four virtual nodes: how long each stage takes.

    python tests/bench/bench_repair_slurm.py [--runs 20] [--together 1] [--clean-wait 15]

Each run has a Slurm, a collector, four agents and a job of its own, all state fresh, and the shipped policy
and limits. Judged from outside (tests/integration/repair_watch.py). The site's power tool takes the fault's
17 s to bring the node back: that is no time of gpuvigil's. Needs root, Slurm and munge. Ends with status 1
when a run did not end with its node returned.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for _folder in ("tests", "agent"):
    sys.path.insert(0, str(ROOT / _folder))

import harness  # noqa: E402 - the script runs without an install
from integration.repair_fleet import INTERVAL, repair_fleet  # noqa: E402
from integration.repair_watch import Times, watch  # noqa: E402
from integration.slurm_lab import slurm_lab  # noqa: E402
from intervals import upper_bound  # noqa: E402

STAGES = ("incident open", "checkpoint acknowledged", "node drained", "job runs elsewhere", "test passed",
          "node returned")  # fmt: skip


def one(number: int, clean_wait_s: int) -> Times | str:
    """Run one repair from an empty state; what it took, or why it is none."""
    time.sleep(3 * (number % 4))  # runs beside each other do not start at one time
    try:
        with tempfile.TemporaryDirectory(prefix="gv-repair-") as name, slurm_lab() as slurm:
            folder = Path(name)
            folder.chmod(0o755)
            with repair_fleet(slurm, folder, clean_wait_s=clean_wait_s) as fleet:
                fleet.start(lease_s=60)
                times = watch(fleet, 120 + clean_wait_s)
                [case] = fleet.cases()
                state = fleet.node_says(
                    "gn1"
                )  # a star: its slurmd is slow to answer, on a machine under load
                if case["outcome"] != "returned" or (state[0].rstrip("*"), state[1]) != ("idle", ""):
                    return f"{case['outcome']}, node {state}: {case['trail'][-1:]}"
                print(f"run {number}: {times}", file=sys.stderr, flush=True)
                return times
    except AssertionError as error:
        return str(error)[:3000]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one run")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--together", type=int, default=1)
    parser.add_argument("--clean-wait", type=int, default=15)
    given = parser.parse_args()
    with ThreadPoolExecutor(given.together) as pool:
        rows = list(
            pool.map(lambda number: one(number, given.clean_wait), range(1 if given.quick else given.runs))
        )
    good, bad = [row for row in rows if isinstance(row, Times)], [row for row in rows if isinstance(row, str)]
    for why in bad:
        print(f"not repaired: {why}\n", file=sys.stderr)
    print(
        f"repair on Slurm, clean wait {given.clean_wait} s, {given.together} at a time. {harness.machine()}"
    )
    print("| seconds after the fault | p50 | max |\n|---|---|---|")
    for name, values in zip(STAGES, zip(*[astuple(row)[:-1] for row in good], strict=True), strict=False):
        print(f"| {name} | {statistics.median(values):.1f} | {max(values):.1f} |")
    redone = [row.redone for row in good]
    over = sum(steps > INTERVAL for steps in redone)
    if good:
        print(f"\nsteps done again: median {statistics.median(redone):.0f}, max {max(redone)} of {INTERVAL} "
              f"between two saves; beyond it in {over} of {len(good)} runs "
              f"(95 % upper bound {upper_bound(over, len(good)):.3f})")  # fmt: skip
    print(
        f"not returned: {len(bad)} of {len(rows)} (95 % upper bound {upper_bound(len(bad), len(rows)):.3f})"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
