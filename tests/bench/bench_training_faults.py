"""Real torchrun jobs (gloo) that misbehave: detected, in time, and whose rank; n and 95 % bounds.

    python tests/bench/bench_training_faults.py [--quick] [--trials N] [--ranks N] [--together N]
                                                 [--kinds KIND ...]

One collector, one agent, several jobs at a time. The fault's instant follows from the job's own step as the
API shows it; the judge is what GET /api/v1/incidents says of that job.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import harness  # noqa: E402 - the script runs without an install
from integration import stack  # noqa: E402
from intervals import upper_bound  # noqa: E402

AT_STEP, STEP_S = 60, 0.1
# kind -> classes that are right, bound in seconds after the fault, whether the rank is to be named
KINDS = {
    "hang": ({"hang"}, 15, True), "gil": ({"hang"}, 15, True), "left_out": ({"hang"}, 15, True),
    "elsewhere": ({"hang"}, 15, True), "stop": ({"hang"}, 15, True), "kill": ({"process_dead"}, 2, True),
    "slow": ({"straggler"}, 6 * STEP_S, True), "data": ({"data_stall"}, 6 * STEP_S, True),
}  # fmt: skip
LATE_S = 60.0


def get(web: int, path: str) -> dict:
    """Read the API."""
    return json.loads(stack.fetch(f"http://127.0.0.1:{web}/api/v1/{path}"))


def trial(web: int, folder: Path, socket: Path, kind: str, number: int, ranks: int) -> dict:
    """Run one job with one fault; return what was said of it."""
    job, culprit = f"{kind}-{number}", number % ranks
    env = stack.environment() | {
        "GPUVIGIL_SOCKET": str(socket), "GPUVIGIL_JOB": job, "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1", "FAULT": f"{kind}:{culprit}:{AT_STEP}", "STEP_S": str(STEP_S),
        "HOME": str(folder),
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={ranks}",
               "--max-restarts=0", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
               "--local-addr=127.0.0.1", str(ROOT / "tests/integration/faulty_job.py")]  # fmt: skip
    log = (folder / f"{job}.log").open("wb")
    process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        try:
            row = stack.wait_for(lambda: at_step(web, job, AT_STEP - 2), 120, f"{job} at its fault")
        except AssertionError:  # torchrun or the watching of it: the log tells
            print(f"{job} did not come to its fault:\n{Path(log.name).read_text()[-2000:]}", file=sys.stderr)
            return {"kind": kind, "begun": False}
        began = time.time() + (AT_STEP - row["step"]) * STEP_S
        return judge(web, job, kind, culprit, began) | {"kind": kind, "begun": True}
    finally:
        end(process, job)


def at_step(web: int, job: str, step: int) -> dict | None:
    """The job's row once it has come so far."""
    rows = [row for row in get(web, "jobs")["items"] if row["job"] == job and (row["step"] or 0) >= step]
    return rows[0] if rows else None


def judge(web: int, job: str, kind: str, culprit: int, began: float) -> dict:
    """Wait for the first incident about the job, then for the rank to be named, as long as that may take."""
    classes, _, named = KINDS[kind]
    found = wrong = None
    while time.time() - began < LATE_S:
        mine = [row for row in get(web, "incidents?state=open")["items"] if f":{job}" in row["target"]]
        right = [row for row in mine if row["class"] in classes]
        wrong = wrong or next((row["class"] for row in mine if row["class"] not in classes), None)
        if right:
            found = found or right[0] | {"late_s": right[0]["opened_ns"] / 1e9 - began}
            if not named or right[0]["target"].endswith(f"rank:{job}/{culprit}"):
                return {"detected": True, "named": True, "late_s": found["late_s"], "wrong": wrong}
        time.sleep(0.2)
    named_as = found["target"].rpartition("/")[2] if found else None
    return {"detected": found is not None, "named": False, "late_s": found and found["late_s"],
            "wrong": wrong or named_as}  # fmt: skip


def end(process: subprocess.Popen, job: str) -> None:
    """End a job with all its ranks: by the environment that only they have."""
    process.kill()
    process.wait(10)
    mark = f"GPUVIGIL_JOB={job}".encode()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), 9)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--trials", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--together", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=list(KINDS))
    given = parser.parse_args()
    trials = given.trials or (1 if given.quick else 20)
    grpc, web, metrics = (stack.free_port() for _ in range(3))
    with tempfile.TemporaryDirectory(prefix="gpuvigil-bench-") as name, contextlib.ExitStack() as running:
        folder = Path(name)
        socket = folder / "hook.sock"
        running.enter_context(stack.collector(folder, grpc, web))
        stack.wait_for(lambda: get(web, "health"), 30, "the collector's API")
        running.enter_context(stack.agent(folder, "bench", grpc, metrics, source="none", hook=str(socket)))
        stack.wait_for(socket.exists, 30, "the hook's socket")
        pool = running.enter_context(ThreadPoolExecutor(given.together))
        jobs = [(kind, number) for number in range(trials) for kind in given.kinds]
        rows = list(pool.map(lambda one: trial(web, folder, socket, *one, given.ranks), jobs))
    print(f"torchrun jobs of {given.ranks} ranks on gloo, steps of {STEP_S} s, {given.together} at a time. "
          f"{harness.machine()}")  # fmt: skip
    print(f"{sum(not row['begun'] for row in rows)} of {len(rows)} jobs did not come to their fault")
    print("| fault | n | detected | right rank | misses | s after the fault, p50 / max | asked | also said |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in given.kinds:
        _, bound, named = KINDS[kind]
        mine = [row for row in rows if row["kind"] == kind and row["begun"]]
        hits, right = sum(row["detected"] for row in mine), sum(row["named"] for row in mine)
        late = sorted(row["late_s"] for row in mine if row["late_s"] is not None) or [float("nan")]
        said = sorted({str(row["wrong"]) for row in mine if row["wrong"]})
        print(f"| {kind} | {len(mine)} | {hits} | {right if named else '-'} | "
              f"<= {upper_bound(len(mine) - hits, len(mine)):.2f} | {late[len(late) // 2]:.1f} / "
              f"{late[-1]:.1f} | {bound:.1f} | {', '.join(said)} |")  # fmt: skip


if __name__ == "__main__":
    main()
