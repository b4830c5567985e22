"""Checkpoint and restart with real torchrun jobs: nothing is lost, and the loss goes on to the last bit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration import stack
from integration.saving import Training

from gpuvigil import checkpoints

pytestmark = [pytest.mark.needs_torch, pytest.mark.timeout(240)]
STEPS = 60


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The losses of a run that nothing disturbs."""
    job = Training(tmp_path_factory.mktemp("reference"), steps=STEPS)
    assert job.start(STEP_S="0").wait(120) == 0, job.log
    losses = dict(job.losses)
    assert sorted(losses) == list(range(STEPS))
    return losses


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Training]:
    made = Training(tmp_path, steps=STEPS)
    yield made
    made.end()


@pytest.mark.parametrize(("fault", "resumed_at"), [
    ("kill:1:33", 30), ("save_kills:1:29", 20), ("corrupt:0:39", 30), ("kill:0:4", 0),
])  # fmt: skip
def test_r8_what_ends_a_job_costs_the_steps_since_its_newest_valid_checkpoint(
    job: Training, reference: dict[int, str], fault: str, resumed_at: int
) -> None:
    status = job.start(FAULT=fault, SAVE_EVERY="10").wait(180)
    assert status == 0, job.log
    steps = [step for step, _ in job.losses]
    [again] = [place for place in range(1, len(steps)) if steps[place] <= steps[place - 1]]
    assert steps[again] == resumed_at, "the newest valid one, not the newest"
    assert all(loss == reference[step] for step, loss in job.losses), "bit for bit"
    assert sorted(set(steps)) == list(range(STEPS)), "and to the end"
    newest = checkpoints.newest(job.directory)
    assert newest is not None and (newest.step, newest.generation) == (59, 2)
    assert not list(job.directory.glob("*.partial")), "nothing half done is left"


def test_r8_a_save_that_fails_does_not_end_the_job(job: Training, reference: dict[int, str]) -> None:
    assert job.start(FAULT="save_fails:1:19", SAVE_EVERY="10").wait(180) == 0, job.log
    assert [step for step, _ in job.losses] == list(range(STEPS))
    whole = [path for path in sorted(job.directory.glob("step-*")) if checkpoints.check(path)]
    assert [int(path.name[5:15]) for path in whole] == [39, 49, 59]


def test_r8_attempts_that_bring_nothing_are_parked_for_a_person(job: Training) -> None:
    (job.folder / "losses.txt").mkdir()  # the job fails at its first step, every time
    process = job.start("--attempts", "2", STEP_S="0")
    assert process.wait(180) == 75
    assert "parked: 2 attempts brought no checkpoint newer than step -1" in job.log


def test_ranks_agree_on_every_step_however_late_a_request_reaches_them(tmp_path: Path) -> None:
    """200 rounds on real gloo: no deadlock, no round in which two ranks acted at different steps."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=4",
               "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1",
               str(Path(__file__).parent / "agreeing_ranks.py"), "200", "1"]  # fmt: skip
    env = stack.environment() | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    acted = json.loads(done.stdout.splitlines()[-1])["acted"]
    assert len(acted) == 4 and all(len(steps) == 200 for steps in acted)
    assert all(steps == acted[0] for steps in acted), "mixed steps"
    waits = [later - sooner for sooner, later in zip(acted[0], acted[0][1:], strict=False)]
    assert max(waits) <= 30 + 2 * 10, "a request that reached anyone is acted on within two agreements"
