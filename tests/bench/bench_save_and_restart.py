"""Checkpoint-and-restart under faults at random: real torchrun jobs, `gpuvigil run`, nothing lost.

    python tests/bench/bench_save_and_restart.py [--quick] [--runs N] [--seed N] [--together N]

Each run trains to its end through one fault of saving_job.py (a rank killed, a save that fails, is killed
half way, or is spoilt on disk). Judged from outside: the loss of every step, bit for bit, against a run
that nothing disturbed, and the steps that were done again against the checkpoints that were whole.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for _folder in ("tests", "agent"):
    sys.path.insert(0, str(ROOT / _folder))

import harness  # noqa: E402 - the script runs without an install
from integration.saving import Training  # noqa: E402
from intervals import upper_bound  # noqa: E402

STEPS, EVERY = 60, 10
KINDS = ("kill", "save_fails", "save_kills", "corrupt")


def one(folder: Path, reference: dict[int, str], kind: str, rank: int, step: int) -> dict:
    """Run one job through one fault; say what it cost, and whether all is as it should be."""
    folder.mkdir()
    job = Training(folder, steps=STEPS)
    began = time.monotonic()
    try:
        status = job.start(FAULT=f"{kind}:{rank}:{step}", SAVE_EVERY=str(EVERY)).wait(180)
    finally:
        job.end()
    steps = [number for number, _ in job.losses]
    again = [at for at in range(1, len(steps)) if steps[at] <= steps[at - 1]]
    redone = sum(steps[at - 1] - steps[at] + 1 for at in again)
    return {
        "kind": kind, "lost": status != 0 or sorted(set(steps)) != list(range(STEPS)),
        "equal": all(loss == reference[number] for number, loss in job.losses), "redone": redone,
        "restarts": len(again), "seconds": time.monotonic() - began, "pause": pause(folder),
    }  # fmt: skip


def pause(folder: Path) -> float:
    """Longest time between two whole checkpoints: fault, restart and the steps done again are in it."""
    made = sorted(path.stat().st_mtime for path in (folder / "checkpoints").glob("step-*-g*/COMPLETE.json"))
    gaps = [later - sooner for sooner, later in itertools.pairwise(made)]
    return max(gaps, default=0.0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--together", type=int, default=2)
    given = parser.parse_args()
    runs, rng = given.runs or (4 if given.quick else 50), random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="gpuvigil-bench-") as name:
        first = Training(Path(name), steps=STEPS)
        assert first.start(STEP_S="0").wait(180) == 0, first.log
        reference = dict(first.losses)
        plan = []
        for number in range(runs):
            kind = KINDS[number % len(KINDS)]
            # a save happens at the end of every tenth step; a rank may be killed at any
            step = rng.randrange(5, STEPS - 5) if kind == "kill" else EVERY * rng.randrange(1, 6) - 1
            rank = 0 if kind == "corrupt" else rng.randrange(2)
            plan.append((Path(name) / str(number), reference, kind, rank, step))
        with ThreadPoolExecutor(given.together) as pool:
            rows = list(pool.map(lambda task: one(*task), plan))
    print(f"checkpoint and restart, 2 ranks, {STEPS} steps, a save every {EVERY}, seed {given.seed}. "
          f"{harness.machine()}")  # fmt: skip
    print("| fault | runs | jobs lost | loss bit-equal | steps done again, mean / max | longest time between "
          "two checkpoints, s |\n|---|---|---|---|---|---|")  # fmt: skip
    for kind in KINDS:
        mine = [row for row in rows if row["kind"] == kind]
        redone = [row["redone"] for row in mine]
        print(f"| {kind} | {len(mine)} | {sum(row['lost'] for row in mine)} | "
              f"{sum(row['equal'] for row in mine)} | {sum(redone) / len(mine):.1f} / {max(redone)} | "
              f"{max(row['pause'] for row in mine):.1f} |")  # fmt: skip
    lost = sum(row["lost"] for row in rows)
    print(f"\n{lost} of {runs} jobs lost (95 % upper bound {upper_bound(lost, runs):.3f}); "
          f"{sum(row['equal'] for row in rows)} of {runs} loss curves equal to the last bit")  # fmt: skip


if __name__ == "__main__":
    main()
