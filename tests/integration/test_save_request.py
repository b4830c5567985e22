"""A person asks a real job for a checkpoint, and restarts it when it hangs: CLI to torchrun and back."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration import stack
from integration.saving import Training

from gpuvigil import checkpoints

pytestmark = [pytest.mark.needs_torch, pytest.mark.timeout(300)]


class Fleet:
    """A collector, an agent and the job."""

    def __init__(self, web: int, job: Training, token: Path) -> None:
        self.web, self.job, self.token = web, job, token

    def get(self, path: str) -> dict:
        return json.loads(stack.fetch(f"http://127.0.0.1:{self.web}/api/v1/{path}"))

    def row(self) -> dict:
        return next((row for row in self.get("jobs")["items"] if row["job"] == "saving"), {})

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gpuvigil.cli", *arguments, "--url", f"http://127.0.0.1:{self.web}"]
        env = stack.environment() | {"COLUMNS": "160", "GPUVIGIL_TOKEN_FILE": str(self.token)}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)

    def incidents(self, fault_class: str) -> list[dict]:
        return [row for row in self.get("incidents?state=open")["items"] if row["class"] == fault_class]

    def until_step(self, step: int) -> None:
        stack.wait_for(lambda: (self.row().get("step") or -1) >= step, 90, f"step {step}")


@contextlib.contextmanager
def fleet(folder: Path, **fault: str) -> Iterator[Fleet]:
    grpc, web, metrics = (stack.free_port() for _ in range(3))
    socket = folder / "hook.sock"
    more = ["--set", "saves.interval=1s", "--set", "saves.deadline=20s"]
    with contextlib.ExitStack() as running:
        running.enter_context(stack.collector(folder, grpc, web, *more))
        made = Fleet(web, Training(folder, steps=100_000, socket=str(socket)), stack.token(folder))
        stack.wait_for(lambda: made.get("health"), 30, "the collector's API")
        running.enter_context(stack.agent(folder, "trainer", grpc, metrics, source="none", hook=str(socket)))
        stack.wait_for(socket.exists, 30, "the hook's socket")
        running.callback(made.job.end)
        made.job.start(**fault)
        yield made


def test_a_checkpoint_on_request_and_what_it_is_refused_for(tmp_path: Path) -> None:
    with fleet(tmp_path) as made:
        stack.wait_for(lambda: made.row().get("on_request"), 90, "the job's owner has opted in")
        made.until_step(20)
        asked = time.time()
        done = made.cli("checkpoint", "saving", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(done.stdout)
        assert (found["state"], found["nodes"]) == ("saved", {"trainer": "armed 2 of 2 ranks"})
        assert time.time() - asked < 15
        newest = checkpoints.newest(made.job.directory)
        assert newest is not None and (str(newest.path), newest.step) == (found["path"], found["step"])
        assert made.row()["checkpoint"]["step"] == newest.step
        time.sleep(1.5)  # one request an interval
        shown = made.cli("checkpoint", "saving")
        assert shown.returncode == 0 and "asked 1 node of job saving" in shown.stdout
        assert f"saved step {made.row()['checkpoint']['step']} to " in shown.stdout
        page = stack.fetch(f"http://127.0.0.1:{made.web}/metrics")
        assert 'gpuvigil_job_checkpoint_step{training_job="saving"}' in page
        for job, word in (("nobody", "nothing is known of it"), ("../x", "expected letters")):
            refused = made.cli("checkpoint", job)
            assert refused.returncode in {1, 2} and word in refused.stderr
        refused = made.cli("restart", "saving")
        assert refused.returncode == 1 and "it makes steps; --force" in refused.stderr

        def account() -> dict:
            return json.loads(made.cli("goodput", "saving", "--json").stdout)

        # an account takes a save in with the step that follows, and is shown anew every 2 s
        stack.wait_for(lambda: account()["checkpoint"]["saves"] >= 2, 10, "both saves in the account")
        assert account()["checkpoint"]["saves"] == 2 and account()["seconds"]["checkpoint"] > 0
        assert "of useful time" in made.cli("goodput", "saving").stdout


def test_a_job_that_hangs_is_named_refuses_to_save_and_is_restarted(tmp_path: Path) -> None:
    with fleet(tmp_path, FAULT="stop:1:60", SAVE_EVERY="25") as made:
        hang = stack.wait_for(lambda: made.incidents("hang"), 120, "the hang")[0]
        stack.wait_for(lambda: made.incidents("hang")[0]["severity"] == "critical", 60, "the verdict")
        assert hang["target"] == "trainer/rank:saving/1"
        refused = made.cli("checkpoint", "saving")
        assert refused.returncode == 1 and "only ranks that progress can save" in refused.stderr
        restarted = time.time()
        done = made.cli("restart", "saving")
        assert done.returncode == 0 and "every launcher was asked" in done.stdout, done.stderr
        made.until_step(80)
        assert time.time() - restarted < 60
        stack.wait_for(lambda: not made.incidents("hang"), 90, "the hang resolved")
        steps = [step for step, _ in made.job.losses]
        assert steps[steps.index(60) + 1] == 50, "from the newest checkpoint"
        account = made.get("goodput/saving")
        assert account["attempts"] == 2 and len(account["losses"]) == 1
        [loss] = account["losses"]
        assert loss["cost"]["detect"] > 10 and loss["cost"]["recompute"] > 0
        assert loss["class"] in {"hang", "process_dead"} and loss["incident"]
        assert account["seconds"]["restart"] > 0


def test_a_save_that_never_returns_has_its_name(tmp_path: Path) -> None:
    with fleet(tmp_path, FAULT="save_hangs:1:20", SAVE_EVERY="21") as made:
        stall = stack.wait_for(lambda: made.incidents("checkpoint_stall"), 150, "it is told")[0]
        assert "is partial: a rank did not answer" in stall["cause"]
        assert checkpoints.newest(made.job.directory) is None
