"""A lost GPU under a job, repaired on a real scheduler with four nodes: how long each stage takes.

    python tests/bench/bench_repair_sites.py [--on slurm kubernetes] [--runs 20] [--together 1]
                                             [--clean-wait 15] [--offender] [--kill collector agent]

Each run has a Slurm, or a Kubernetes control plane, a collector, four agents and a job of its own, all state
fresh, and the shipped policy and limits. Judged from outside (tests/integration/repair_watch.py). The site's
power tool takes the fault's 17 s to bring the node back: that is no time of gpuvigil's. On Kubernetes
scheduler and kubelets are the test's (kube_kubelet.py), the pod a process. --offender: the same GPU is lost
three times, state kept, the pause between two holds of a domain lifted. --kill: a run for each transition
of the repair that is on disk, at which collector or agent are killed and started again. Needs root, and Slurm
with munge or the cluster's programs; a scheduler that is not there is said to be left out. Ends with status 1
when a run did not end with its node returned (the offender: kept).
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for _folder in ("tests", "agent"):
    sys.path.insert(0, str(ROOT / _folder))

import harness  # noqa: E402 - the script runs without an install
from integration.kube_lab import CACHE  # noqa: E402
from integration.kube_repair import kube_fleet  # noqa: E402
from integration.repair_base import INTERVAL, Fleet  # noqa: E402
from integration.repair_fleet import repair_fleet  # noqa: E402
from integration.repair_kill import kill_at, repeated  # noqa: E402
from integration.repair_watch import Times, offend, watch  # noqa: E402
from integration.slurm_lab import slurm_lab  # noqa: E402
from intervals import upper_bound  # noqa: E402

STAGES = ("incident open", "checkpoint acknowledged", "node held", "job runs elsewhere", "test passed",
          "node returned")  # fmt: skip
TRANSITIONS = 17  # five effects intended, issued and done, the checkpoint issued and done
PROGRAMS = {"slurm": "slurmctld", "kubernetes": str(CACHE / "bin/kube-apiserver")}


@contextlib.contextmanager
def site(kind: str, **more: Any) -> Iterator[Fleet]:
    """Make a scheduler and a fleet on it, in a folder of their own that jobs reach."""
    with tempfile.TemporaryDirectory(prefix="gv-repair-") as name, contextlib.ExitStack() as running:
        folder = Path(name)
        folder.chmod(0o755)
        if kind == "kubernetes":
            yield running.enter_context(kube_fleet(folder, **more))
        else:
            slurm = running.enter_context(slurm_lab())
            yield running.enter_context(repair_fleet(slurm, folder, **more))


def one(kind: str, number: int, clean_wait_s: int) -> Times | str:
    """Run one repair from an empty state; what it took, or why it is none."""
    time.sleep(3 * (number % 4))  # runs beside each other do not start at one time
    try:
        with site(kind, clean_wait_s=clean_wait_s) as fleet:
            fleet.start(lease_s=60)
            times = watch(fleet, 120 + clean_wait_s)
            [case] = fleet.cases()
            if case["outcome"] != "returned" or fleet.held():
                return f"{case['outcome']}, held {fleet.held()}: {case['trail'][-1:]}\n{fleet.told()}"
            print(f"{kind} {number}: {times}", file=sys.stderr, flush=True)
            return times
    except AssertionError as error:
        return str(error)[:3000]


def offender(kind: str, clean_wait_s: int) -> int:
    """Lose a GPU three times; say how long the node was held each time. Returns 1 where it was not kept."""
    again = (80.0 + clean_wait_s, 190.0 + 4 * clean_wait_s)
    limits = '[remediation.limits]\ndomain_pause = "1s"\n'
    with site(kind, clean_wait_s=clean_wait_s, again_s=again, more=limits) as fleet:
        fleet.start(lease_s=60)
        *returned, _ = offend(fleet, 240 + 4 * clean_wait_s)
        case = fleet.cases()[-1]
        kept = fleet.held() and case["outcome"] == "handed_over"
    print(f"{kind}: returned after {', '.join(f'{one:.0f} s' for one in returned)} held, then "
          f"{'kept' if kept else 'NOT kept'}: {case['trail'][-1]['what']}\n")  # fmt: skip
    return 0 if kept and len(returned) == 2 else 1


def kill(kind: str, what: str, number: int) -> tuple[str, float, str]:
    """Kill at one transition: which it was, the seconds from the fault to the case's end, what was wrong."""
    time.sleep(3 * (number % 4))
    try:
        with site(kind, restore_grace_s=30) as fleet:
            action, state = kill_at(fleet, number, what)
            lasted_s = time.time() - fleet.fault_ns / 1e9
            outcome = fleet.cases()[0]["outcome"]
            wrong = repeated(fleet) or ("" if outcome == "returned" and not fleet.held() else outcome)
            print(f"{kind} {number}: {state} {lasted_s:.0f} s {wrong}", file=sys.stderr, flush=True)
            return f"{action.split('-')[3]} {state}", lasted_s, wrong
    except AssertionError as error:
        print(f"{kind} {number}: {str(error)[:3000]}", file=sys.stderr, flush=True)
        return f"transition {number}", float("nan"), "did not end"


def kills(kind: str, what: str, together: int) -> int:
    """Kill at every transition; returns how many runs did not end as they should."""
    with ThreadPoolExecutor(together) as pool:
        rows = list(pool.map(lambda number: kill(kind, what, number), range(1, TRANSITIONS + 1)))
    print(f"{kind}, kill -9 of the {what} at each of {TRANSITIONS} transitions, {together} at a time. "
          f"{harness.machine()}")  # fmt: skip
    print("| killed at | fault to the case's end, s | node returned, nothing twice |\n|---|---|---|")
    for at, lasted_s, wrong in rows:
        print(f"| {at} | {lasted_s:.0f} | {wrong or 'yes'} |")
    bad = sum(bool(wrong) for _, _, wrong in rows)
    print(f"\n{bad} of {len(rows)} wrong (95 % upper bound {upper_bound(bad, len(rows)):.3f})\n")
    return bad


def main() -> int:
    """Print a table for each scheduler."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one run")
    parser.add_argument("--on", nargs="+", choices=("slurm", "kubernetes"), default=["slurm", "kubernetes"])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--together", type=int, default=1)
    parser.add_argument("--clean-wait", type=int, default=15)
    parser.add_argument("--offender", action="store_true")
    parser.add_argument("--kill", nargs="+", choices=("collector", "agent"), default=[])
    given = parser.parse_args()
    failed = 0
    for kind in given.on:
        if shutil.which(PROGRAMS[kind]) is None:
            print(f"repair on {kind}: left out, {PROGRAMS[kind]} is not there")
            continue
        if given.kill:
            failed += sum(kills(kind, what, given.together) for what in given.kill)
            continue
        if given.offender:
            failed += offender(kind, given.clean_wait)
            continue
        with ThreadPoolExecutor(given.together) as pool:
            numbers = range(1 if given.quick else given.runs)
            rows = list(pool.map(lambda number, kind=kind: one(kind, number, given.clean_wait), numbers))
        print(f"repair on {kind}, clean wait {given.clean_wait} s, {given.together} at a time. "
              f"{harness.machine()}")  # fmt: skip
        failed += table(rows)
    return 1 if failed else 0


def table(rows: list[Times | str]) -> int:
    """Print the stages; returns how many runs were no repair."""
    good, bad = [row for row in rows if isinstance(row, Times)], [row for row in rows if isinstance(row, str)]
    for why in bad:
        print(f"not repaired: {why}\n", file=sys.stderr)
    print("| seconds after the fault | p50 | max |\n|---|---|---|")
    for name, values in zip(STAGES, zip(*[astuple(row)[:-1] for row in good], strict=True), strict=False):
        print(f"| {name} | {statistics.median(values):.1f} | {max(values):.1f} |")
    redone = [row.redone for row in good]
    over = sum(steps > INTERVAL for steps in redone)
    if good:
        print(f"\nsteps done again: median {statistics.median(redone):.0f}, max {max(redone)} of {INTERVAL} "
              f"between two saves; beyond it in {over} of {len(good)} runs "
              f"(95 % upper bound {upper_bound(over, len(good)):.3f})")  # fmt: skip
    bound = upper_bound(len(bad), len(rows))
    print(f"not returned: {len(bad)} of {len(rows)} (95 % upper bound {bound:.3f})\n")
    return len(bad)


if __name__ == "__main__":
    raise SystemExit(main())
