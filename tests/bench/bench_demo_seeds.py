"""Ten demos, seeds derived from the commit: every fault found, class and target right, no false alarm.

Each demo is the shipped command in processes of its own; the judge is its published rule (docs/demo.md).
usage: bench_demo_seeds.py [--quick] [--seeds 10] [--parallel 2] [--commit HASH]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import harness
from intervals import upper_bound

DEMO_LIMIT_S = 240


def seeds_of(commit: str, count: int) -> list[int]:
    """Derive seeds that nobody chose: the first bytes of SHA-256 of the commit and a counter."""
    digests = (hashlib.sha256(f"{commit}/{number}".encode()).digest() for number in range(count))
    return [int.from_bytes(digest[:4], "big") for digest in digests]


def play(seed: int) -> dict[str, object]:
    """Run one demo. A run that could not be played is a failure of every fault in it."""
    command = [sys.executable, "-m", "gpuvigil.cli", "demo", "--json", "--seed", str(seed)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=DEMO_LIMIT_S, env=harness.environment()
    )
    if not done.stdout.strip():
        raise RuntimeError(f"seed {seed}: exit {done.returncode}\n{done.stderr[-2000:]}")
    if done.returncode:
        told = [
            line for line in done.stderr.splitlines() if " alarm " in line or line.startswith(("MISS", "  "))
        ]
        print(f"seed {seed} was not judged right:", *told, sep="\n", file=sys.stderr, flush=True)
    return json.loads(done.stdout)


def by_kind(runs: list[dict]) -> list[list[object]]:
    """One row a kind of fault: how many, how many right, how late."""
    faults = defaultdict(list)
    for run in runs:
        for fault in run["faults"]:
            faults[fault["fault"]].append(fault)
    rows = []
    for kind, found in sorted(faults.items()):
        late = [(f["found_ns"] - f["injected_ns"]) / 1e9 for f in found if f["found_ns"]]
        delay = f"{harness.percentile(late, 0.5):.1f} / {max(late):.1f}" if late else "silent"
        rows.append([kind, len(found), sum(f["correct"] for f in found), delay])
    return rows


def main() -> int:
    """Play, judge, print; exit 1 unless all is right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--parallel", type=int, default=2)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=harness.ROOT)
    parser.add_argument("--commit", default=head.stdout.strip())
    options = parser.parse_args()
    seeds = seeds_of(options.commit, 1 if options.quick else options.seeds)
    with ThreadPoolExecutor(options.parallel) as pool:
        runs = list(pool.map(play, seeds))
    n = sum(len(run["faults"]) for run in runs)
    right = sum(fault["correct"] for run in runs for fault in run["faults"])
    alarms = sum(int(run["false_alarms"]) for run in runs)
    title = f"Demo, {len(seeds)} seeds of commit {options.commit[:12]}: {', '.join(map(str, seeds))}"
    harness.print_table(title, ["fault", "n", "right", "s after onset, p50 / max"], by_kind(runs))
    print(
        f"\n{right} of {n} right (95 % upper bound of the rate of misses: {upper_bound(n - right, n):.3f}); "
    )
    print(f"{alarms} false alarms in {len(runs)} runs (95 % upper bound a run: ", end="")
    print(f"{upper_bound(min(alarms, len(runs)), len(runs)):.2f}). {harness.machine()}")
    return 0 if right == n and alarms == 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
