"""Real torchrun jobs on gloo that hang: what is gathered once of each, and what the incident then shows."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration import stack
from integration.test_training_end_to_end import certain, cli, get

HERE = Path(__file__).parent
AT_STEP = 40
# job -> fault:rank, ranks
JOBS = {
    "held": ("gil:1", 2), "three": ("left_out:2", 3), "two": ("left_out:1", 2), "stop": ("stop:0", 2),
    "cross": ("elsewhere:1", 3),
}  # fmt: skip


@contextlib.contextmanager
def torchrun(folder: Path, job: str, fault: str, ranks: int, **more: str) -> Iterator[None]:
    env = stack.environment() | {
        "GPUVIGIL_SOCKET": str(folder / "hook.sock"), "GPUVIGIL_JOB": job, "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1", "FAULT": f"{fault}:{AT_STEP}", "STEP_S": "0.1", "HOME": str(folder),
        **more,
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={ranks}",
               "--max-restarts=0", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
               "--local-addr=127.0.0.1", str(HERE / "faulty_job.py")]  # fmt: skip
    with (folder / f"{job}.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait(10)
        mark = f"GPUVIGIL_JOB={job}".encode()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)


@contextlib.contextmanager
def watched(folder: Path, *more: str) -> Iterator[int]:
    """A collector and an agent that jobs may join."""
    grpc, web, metrics = (stack.free_port() for _ in range(3))
    with contextlib.ExitStack() as running:
        running.enter_context(stack.collector(folder, grpc, web, *more))
        stack.wait_for(lambda: get(web, "health"), 30, "the collector's API")
        socket = folder / "hook.sock"
        running.enter_context(stack.agent(folder, "trainer", grpc, metrics, source="none", hook=str(socket)))
        stack.wait_for(socket.exists, 30, "the hook's socket")
        yield web


def hang_of(web: int, job: str) -> dict | None:
    found = get(web, "incidents?state=open")["items"]
    return next((row for row in found if row["class"] == "hang" and f":{job}" in row["target"]), None)


def facts_of(web: int, row: dict) -> dict:
    """The facts of the incident's newest finding about a step that does not end."""
    whole = get(web, f"incidents/{row['id']}")
    [found] = [one for one in whole["findings"] if one["rule"] == "no_step"]
    return found["evidence"]["facts"] | {"sentence": found["sentence"]}


def settled(web: int, job: str, *keys: str) -> tuple[dict, dict]:
    """The incident of a job once its finding has these facts."""

    def look() -> tuple[dict, dict] | None:
        row = hang_of(web, job)
        facts = facts_of(web, row) if row is not None else {}
        return (row, facts) if row is not None and all(key in facts for key in keys) else None

    return stack.wait_for(look, 150, f"{', '.join(keys)} of {job}")


@pytest.mark.slow
@pytest.mark.needs_torch
def test_what_a_hang_shows(tmp_path: Path) -> None:
    with watched(tmp_path, "--set", "saves.evidence_interval=1h") as web, contextlib.ExitStack() as running:
        for job, (fault, ranks) in JOBS.items():
            running.enter_context(torchrun(tmp_path, job, fault, ranks))
        held_lock_shows_its_stack(web)
        left_out_is_named(web)
        two_alike_are_not_told_apart(web)
        stopped_is_not_signalled(web)
        one_in_another_group_is_named(web)
        time.sleep(3)
        asked_once(tmp_path)


@pytest.mark.slow
@pytest.mark.needs_torch
def test_a_job_that_gives_up_by_its_own_timeout_stays_its_culprits_hang(tmp_path: Path) -> None:
    """Torch ends a rank that has waited too long: it is not taken for the one that died."""
    with watched(tmp_path) as web, torchrun(tmp_path, "own", "stop:1", 2, TIMEOUT_S="30"):
        row = stack.wait_for(lambda: hang_of(web, "own"), 90, "the hang")

        def gave_up() -> str:
            sentence = facts_of(web, hang_of(web, "own") or row)["sentence"]
            return sentence if "gave up" in sentence else ""

        assert re.search(
            r"then ranks gave up, rank 0 after (2[5-9]|3\d) s", stack.wait_for(gave_up, 60, "end")
        )
        assert certain(hang_of(web, "own")) and row["target"] == "trainer/rank:own/1"
        time.sleep(5)
        found = get(web, "incidents")["items"]
        assert [(one["id"], one["class"]) for one in found if ":own" in one["target"]] == [
            (row["id"], "hang")
        ]
        assert "Timed out" in (tmp_path / "own.log").read_text()


def held_lock_shows_its_stack(web: int) -> None:
    row, facts = settled(web, "held", "held", "records")
    assert row["target"] == "trainer/rank:held/1"
    assert re.search(r"interpreter lock is held, main thread in faulty_job.py:\d+ hold_inter", facts["held"])
    assert "rank 1 in faulty_job.py" in facts["stacks"] and "rank 0 in all_reduce" in facts["stacks"]
    row = stack.wait_for(lambda: certain(hang_of(web, "held")), 60, "the verdict")
    shown = cli(web, "why", row["id"])
    assert "held: rank 1: its interpreter lock is held, main thread in" in shown
    assert "hold_interpreter_lock" in shown


def left_out_is_named(web: int) -> None:
    row, facts = settled(web, "three", "records")
    row = stack.wait_for(lambda: certain(hang_of(web, "three")), 60, "the verdict")
    facts = facts_of(web, row)
    assert (row["target"], facts["kind"]) == ("trainer/rank:three/2", "desync")
    assert "rank 2 does broadcast" in facts["sentence"]
    assert re.search(r"rank 2 left out all_reduce \d+ or did broadcast once more", facts["sentence"])
    assert "rank 2 in broadcast" in facts["stacks"] and "rank 0, 1 in all_reduce" in facts["stacks"]
    assert facts["outlier"].startswith("rank 2: ") and facts["records"].startswith("3 of 3")


def two_alike_are_not_told_apart(web: int) -> None:
    """Of two ranks in different ops nobody can say who erred: the cause is said, no rank is named."""
    row, facts = settled(web, "two", "records")
    assert (row["target"], facts["kind"]) == ("trainer/job:two", "desync")
    assert "among ranks 0, 1: ops of different kind at one place" in facts["sentence"]


def stopped_is_not_signalled(web: int) -> None:
    row, facts = settled(web, "stop", "held")
    assert row["target"] == "trainer/rank:stop/0"
    assert facts["held"] == "rank 0: it is stopped by a signal, or by a debugger"


def one_in_another_group_is_named(web: int) -> None:
    row, facts = settled(web, "cross", "records")
    assert (row["target"], facts["kind"]) == ("trainer/rank:cross/1", "desync"), facts
    assert "rank 1 waits in barrier 1 of group 1" in facts["sentence"]
    assert "rank 1 in barrier, from faulty_job.py" in facts["stacks"]


def asked_once(folder: Path) -> None:
    """Each job was asked once, and its agent did it once."""
    log = (folder / "collector.log").read_text(errors="replace")
    assert sorted(re.findall(r"event=evidence_asked .*job=(\w+)", log)) == sorted(JOBS), log[-3000:]
    done = re.findall(r"event=command_done .*verb=evidence", (folder / "trainer.log").read_text())
    assert len(done) == len(JOBS)
