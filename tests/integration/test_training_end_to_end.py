"""A real job of two processes, real hook, agent, collector and CLI: seen, stopped, named, killed, named."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from integration import stack

HERE = Path(__file__).parent


def get(web: int, path: str) -> dict:
    return json.loads(stack.fetch(f"http://127.0.0.1:{web}/api/v1/{path}"))


def cli(web: int, *arguments: str) -> str:
    command = [sys.executable, "-m", "gpuvigil.cli", *arguments, "--url", f"http://127.0.0.1:{web}"]
    done = subprocess.run(
        command, env=stack.environment() | {"COLUMNS": "140"}, capture_output=True, text=True, timeout=30
    )
    assert not done.stderr, done.stderr
    return done.stdout


@contextlib.contextmanager
def fleet(folder: Path):
    """A collector, this machine's agent without GPUs, and the job."""
    grpc, web, metrics = (stack.free_port() for _ in range(3))
    socket = folder / "hook.sock"
    with contextlib.ExitStack() as running:
        running.enter_context(stack.collector(folder, grpc, web))
        stack.wait_for(lambda: get(web, "health"), 30, "the collector's API")
        running.enter_context(stack.agent(folder, "trainer", grpc, metrics, source="none", hook=str(socket)))
        stack.wait_for(socket.exists, 30, "the hook's socket")
        command = [sys.executable, str(HERE / "two_ranks.py"), str(socket)]
        job = subprocess.Popen(command, env=stack.environment(), stdout=subprocess.PIPE, text=True)
        try:
            yield web, [int(word) for word in job.stdout.readline().split()]
        finally:
            job.kill()
            job.wait(10)


def incident(web: int, fault_class: str) -> dict | None:
    found = [row for row in get(web, "incidents?state=open")["items"] if row["class"] == fault_class]
    return found[0] if found else None


def seen(web: int) -> None:
    """The job is on API, CLI and metrics endpoint, with what its loop told."""
    job = stack.wait_for(
        lambda: next((r for r in get(web, "jobs")["items"] if (r["step"] or 0) > 60), None), 60, "steps"
    )
    assert (job["job"], job["state"], job["ranks_up"], job["ranks"]) == ("pair", "running", 2, 2)
    assert job["nodes"] == ["trainer"]
    assert 0.05 < job["step_seconds"] < 0.5
    assert 0.04 < job["phases"]["forward"] < 0.2 and job["phases"]["data"] > 0.005
    assert 0 < job["loss"] < 0.1
    shown = cli(web, "status")
    assert "pair" in shown and "2/2" in shown and "forward" in shown
    assert json.loads(cli(web, "status", "--json"))["jobs"][0]["job"] == "pair"
    page = stack.fetch(f"http://127.0.0.1:{web}/metrics")
    assert 'gpuvigil_job_step{training_job="pair"}' in page
    assert 'gpuvigil_job_phase_seconds{phase="forward",training_job="pair"}' in page


def stopped_and_named(web: int, pid: int) -> None:
    """A rank that is stopped holds the job: suspected in time, then named for certain; and it clears."""
    os.kill(pid, signal.SIGSTOP)
    began = time.time()
    hang = stack.wait_for(lambda: incident(web, "hang"), 60, "the hang")
    assert hang["opened_ns"] / 1e9 - began < 45, "suspected within max(3 x p99, 15 s), slack of 3"
    hang = stack.wait_for(lambda: certain(incident(web, "hang")), 30, "the verdict")
    assert hang["target"] == "trainer/rank:pair/1"
    assert "rank 1 holds it: no thread of its process has run" in hang["cause"]
    os.kill(pid, signal.SIGCONT)
    stack.wait_for(lambda: incident(web, "hang") is None, 90, "the hang resolved")


def certain(row: dict | None) -> dict | None:
    return row if row is not None and row["severity"] == "critical" else None


@pytest.mark.slow
def test_a_job_is_seen_and_what_stops_or_kills_a_rank_is_named(tmp_path: Path) -> None:
    with fleet(tmp_path) as (web, pids):
        seen(web)
        stopped_and_named(web, pids[1])
        os.kill(pids[1], signal.SIGKILL)
        killed = time.time()
        dead = stack.wait_for(lambda: incident(web, "process_dead"), 20, "the death")
        assert dead["opened_ns"] / 1e9 - killed < 6, "promised within 2 s"
        assert (dead["target"], dead["scope"], dead["severity"]) == ("trainer/rank:pair/1", "job", "critical")
        assert "rank 1 of job pair died after step" in dead["cause"]
        assert "origin job" in cli(web, "why", dead["id"])
        assert incident(web, "hang") is None, "what waits for the dead is no hang of its own"
