"""Checkpoint-and-restart under faults at random: real torchrun jobs, `gpuvigil run`, nothing lost.

    python tests/bench/bench_save_and_restart.py [--quick] [--runs N] [--seed N] [--together N]

Each run trains to its end through one fault of saving_job.py: a rank killed or hanging, a save that fails,
never returns on one rank (a partial checkpoint) or is killed half way, a checkpoint spoilt on disk, a second
attempt begun while the first still runs and saves (an orphan). Judged from outside: the loss of every step,
bit for bit, against a run that nothing disturbed; the step that was gone on with against the checkpoints that
were whole and sound by then; the time from the fault to the first new step, by when rank 0 wrote losses down.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import Popen

ROOT = Path(__file__).resolve().parents[2]
for _folder in ("tests", "agent"):
    sys.path.insert(0, str(ROOT / _folder))

import harness  # noqa: E402 - the script runs without an install
from integration.saving import Training  # noqa: E402
from intervals import upper_bound  # noqa: E402

from gpuvigil import checkpoints  # noqa: E402

STEPS, EVERY = 60, 10
KINDS = ("kill", "hang", "save_fails", "save_hangs", "save_kills", "corrupt", "orphan")
AT_A_SAVE = {"save_fails", "save_hangs", "save_kills", "corrupt"}
# a hang ends by the job's own timeout: no collector is there
PATIENCE = {"TIMEOUT_S": "8", "SAVE_TIMEOUT_S": "6"}


def one(folder: Path, reference: dict[int, str], kind: str, rank: int, step: int) -> dict:
    """Run one job through one fault; say what it cost, and whether all is as it should be."""
    folder.mkdir()
    job = Training(folder, steps=STEPS)
    try:
        # an orphan is slow, so that it still runs when the second attempt has begun
        pace = {"STEP_S": "0.4"} if kind == "orphan" else {}
        process = job.start(FAULT=f"{kind}:{rank}:{step}", SAVE_EVERY=str(EVERY), **PATIENCE, **pace)
        pauses = Pauses(job.file)
        if kind == "orphan":
            return overtaken(job, process, reference, step)
        while process.poll() is None:
            pauses.look()
        status = process.returncode
    finally:
        job.end()
    steps = [number for number, _ in job.losses]
    again = [at for at in range(1, len(steps)) if steps[at] <= steps[at - 1]]
    redone = sum(steps[at - 1] - steps[at] + 1 for at in again)
    return {
        "kind": kind, "lost": status != 0 or sorted(set(steps)) != list(range(STEPS)),
        "equal": all(loss == reference[number] for number, loss in job.losses), "redone": redone,
        "newest": [steps[at] for at in again] == expected(kind, step), "pause": pauses.longest,
    }  # fmt: skip


def expected(kind: str, step: int) -> list[int]:
    """The steps that a job goes on with: after the newest checkpoint that is whole and sound."""
    return [] if kind == "save_fails" else [step // EVERY * EVERY]


def overtaken(job: Training, process: Popen[str], reference: dict[int, str], step: int) -> dict:
    """Begin a second attempt from another folder while the first runs on: only the second may write."""
    while len(job.losses) <= step:
        time.sleep(0.01)
    second = Training(job.folder / "second", steps=STEPS)
    second.folder.mkdir()
    second.directory = job.directory
    whole = [found.step for path in job.directory.glob("step-*-g*") if (found := checkpoints.check(path))]
    began = time.monotonic()
    try:
        after = second.start(SAVE_EVERY=str(EVERY), **PATIENCE)
        while not second.losses and after.poll() is None:
            time.sleep(0.01)
        pause = time.monotonic() - began
        status = after.wait(180)
        first = process.wait(180)
    finally:
        second.end()
    steps = [number for number, _ in second.losses] or [STEPS]
    made = [one for path in job.directory.glob("step-*-g*") if (one := checkpoints.check(path))]
    late = [
        one for one in made if one.generation == 1 and one.step >= steps[0]
    ]  # what the orphan wrote after
    newest = checkpoints.newest(job.directory)
    mine = newest is not None and (newest.step, newest.generation) == (STEPS - 1, 2)
    return {
        "kind": "orphan", "lost": (status, first) != (0, 0) or steps != list(range(steps[0], STEPS)),
        "equal": all(loss == reference[number] for number, loss in second.losses),
        "redone": max(0, step - steps[0] + 1), "pause": pause,
        "newest": mine and not late and steps[0] >= max(whole, default=-1) + 1,
    }  # fmt: skip


class Pauses:
    """The longest time between two steps that rank 0 wrote down."""

    def __init__(self, file: Path) -> None:
        self._file, self._size, self._at, self.longest = file, 0, 0.0, 0.0

    def look(self) -> None:
        """Look once, 10 ms at least after the last."""
        time.sleep(0.01)
        size, now = self._file.stat().st_size if self._file.exists() else 0, time.monotonic()
        if size != self._size:
            self.longest = max(self.longest, now - self._at if self._at else 0.0)
            self._size, self._at = size, now


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--together", type=int, default=2)
    given = parser.parse_args()
    runs, rng = given.runs or (len(KINDS) if given.quick else 50), random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="gpuvigil-bench-") as name:
        first = Training(Path(name), steps=STEPS)
        assert first.start(STEP_S="0").wait(180) == 0, first.log
        reference = dict(first.losses)
        plan = []
        for number in range(runs):
            kind = KINDS[number % len(KINDS)]
            # a save happens at the end of every tenth step; the rest may come at any
            at_a_save, at_any = EVERY * rng.randrange(1, 6) - 1, rng.randrange(5, STEPS - 20)
            step = at_a_save if kind in AT_A_SAVE else at_any
            rank = 0 if kind == "corrupt" else rng.randrange(2)
            plan.append((Path(name) / str(number), reference, kind, rank, step))
        with ThreadPoolExecutor(given.together) as pool:
            rows = list(pool.map(lambda task: one(*task), plan))
    print(f"checkpoint and restart, 2 ranks, {STEPS} steps, a save every {EVERY}, seed {given.seed}. "
          f"{harness.machine()}")  # fmt: skip
    table(rows)


def table(rows: list[dict]) -> None:
    """A line a fault, and what holds of all."""
    print("| fault | runs | jobs lost | loss bit-equal | from the newest sound checkpoint | "
          "steps done again, mean / max | s without a step, p50 / max |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for kind in KINDS:
        mine = [row for row in rows if row["kind"] == kind]
        if not mine:
            continue
        redone, pauses = [row["redone"] for row in mine], sorted(row["pause"] for row in mine)
        print(f"| {kind} | {len(mine)} | {sum(row['lost'] for row in mine)} | "
              f"{sum(row['equal'] for row in mine)} | {sum(row['newest'] for row in mine)} | "
              f"{sum(redone) / len(mine):.1f} / {max(redone)} | "
              f"{pauses[len(pauses) // 2]:.1f} / {pauses[-1]:.1f} |")  # fmt: skip
    runs = len(rows)
    lost, equal, newest = (sum(row[key] for row in rows) for key in ("lost", "equal", "newest"))
    print(
        f"\n{lost} of {runs} jobs lost (95 % upper bound {upper_bound(lost, runs):.3f}); {equal} of {runs} "
        f"loss curves equal to the last bit; {newest} of {runs} went on from the newest sound checkpoint"
    )


if __name__ == "__main__":
    main()
