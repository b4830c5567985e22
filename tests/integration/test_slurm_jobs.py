"""Move and stop jobs of a real Slurm: with their own checkpoint signal, never one that forbids it."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.slurm_actions import Recorder, action, actuator, fence
from integration.slurm_lab import SlurmLab, until

from gpuvigil_collector.action import RefusedError

pytestmark = pytest.mark.needs_slurm

# a training script: counts steps, goes on from its checkpoint, saves upon USR1
TRAIN = """
step=$(cat ck-$SLURM_JOB_ID 2>/dev/null || echo 0)
echo "attempt ${SLURM_RESTART_COUNT:-0} node $SLURMD_NODENAME from $step" >>log-$SLURM_JOB_ID
trap 'echo $step >ck-$SLURM_JOB_ID.partial; mv ck-$SLURM_JOB_ID.partial ck-$SLURM_JOB_ID' USR1
while true; do step=$((step + 1)); echo $step >at-$SLURM_JOB_ID; sleep 0.1; done
"""
OPT_IN = "--comment=gpuvigil:signal=USR1@2"


def running(slurm: SlurmLab, *options: str, script: str = "sleep 300") -> str:
    """Submit a job and wait until it runs."""
    job = slurm.submit(script, *options)
    until(lambda: slurm.job(job)["job_state"] == "RUNNING", f"job {job} runs")
    return job


@contextlib.contextmanager
def interactive(slurm: SlurmLab, *options: str) -> Iterator[str]:
    """A person's srun, in the foreground of a terminal that is not ours."""
    before = set(slurm.run("squeue", "-h", "-o", "%A").split())
    with subprocess.Popen(["srun", *options, "sleep", "300"], env=slurm.env) as child:
        try:
            yield until(
                lambda: set(slurm.run("squeue", "-h", "-t", "R", "-o", "%A").split()) - before, "srun runs"
            ).pop()
        finally:
            child.kill()


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_drain_checkpoint_requeue_elsewhere_from_the_checkpoint(slurm: SlurmLab) -> None:
    job = running(slurm, "--gres=gpu:4", OPT_IN, script=TRAIN)
    node = slurm.job(job)["nodes"]
    log, saved = slurm.folder / f"log-{job}", slurm.folder / f"ck-{job}"
    until(lambda: int(read(slurm.folder / f"at-{job}") or 0) > 5, "it trains")
    hands = actuator(slurm)
    hands.apply(action("hold", node), fence())
    look = hands.look(action("move_job", node, job=job))
    assert (look.state, look.token) == ("absent", "restarts=0")
    began = time.monotonic()
    said = hands.apply(action("move_job", node, job=job, before=look.token), fence())
    assert "may start at once" in said
    until(lambda: "attempt 1" in read(log), "it runs again")
    took_s = time.monotonic() - began
    again = read(log).splitlines()[1]
    assert int(read(saved)) > 5 and again.endswith(f" from {read(saved).strip()}")
    assert f"node {node} " not in again
    assert took_s < 2 + 3 * 4, "the begin-time hold (5 s here, 121 s by default) was not waited out"
    assert slurm.job(job)["restart_cnt"] == 1
    assert hands.look(action("move_job", node, job=job, before=look.token, state="issued")).state == "done"


def test_a_job_that_dies_slowly_is_released_once_it_is_pending(slurm: SlurmLab) -> None:
    """StartTime=now while a job is completing is answered with yes and forgotten: it must come later."""
    job = running(slurm, script="trap '' TERM\nwhile true; do sleep 0.2; done")
    recorder = Recorder()
    said = actuator(slurm, recorder).apply(action("move_job", job=job, before="restarts=0"), fence())
    assert "may start at once" in said
    until(lambda: slurm.job(job)["job_state"] == "RUNNING", "it runs again", 4)
    assert [argv[1] for argv in recorder.changes] == ["requeue", "update"]


def test_excluded_node_is_added_to_the_jobs_own(slurm: SlurmLab) -> None:
    job = running(slurm, "--exclude=gn4")
    node = slurm.job(job)["nodes"]
    full_name = f"{node}.example.org"  # as an agent may call itself
    said = actuator(slurm, exclude_node=True).apply(action("move_job", full_name, job=job), fence())
    assert f"never on {node} again" in said
    from gpuvigil_collector.slurm.hostlist import expand

    assert set(expand(slurm.job(job)["excluded_nodes"])) == {node, "gn4"}
    until(lambda: slurm.job(job)["job_state"] == "RUNNING", "it runs again")
    assert slurm.job(job)["nodes"] not in (node, "gn4")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--no-requeue",), "no_requeue"),
        (("--array=1-2",), "array"),
        (("--nodelist=gn1",), "asks for gn1 itself"),
    ],
)
def test_r7_refused(slurm: SlurmLab, options: tuple[str, ...], why: str) -> None:
    job = slurm.submit("sleep 300", *options)
    until(lambda: slurm.run("squeue", "-h", "-t", "R", "-o", "%A"), "it runs")
    name = f"{job}_2" if why == "array" else job
    recorder = Recorder()
    with pytest.raises(RefusedError, match=why):
        actuator(slurm, recorder).apply(action("move_job", "gn1.example.org", job=name), fence())
    assert recorder.changes == []
    assert set(slurm.run("squeue", "-h", "-j", job, "-o", "%T").split()) == {"RUNNING"}


def test_r7_interactive_and_het_refused(slurm: SlurmLab) -> None:
    recorder = Recorder()
    hands = actuator(slurm, recorder)
    path = slurm.folder / "het.sh"
    path.write_text("#!/bin/bash\nsleep 300\n")
    out = f"--output={slurm.folder}/het.out"
    het = slurm.run("sbatch", "--parsable", out, "-N1", ":", "-N1", str(path))
    until(lambda: slurm.job(het)["job_state"] == "RUNNING", "the het job runs")
    with interactive(slurm, "--nodelist=gn4") as job:
        for kind in ("move_job", "stop_job"):
            with pytest.raises(RefusedError, match="interactive"):
                hands.apply(action(kind, job=job), fence())
            with pytest.raises(RefusedError, match="het"):
                hands.apply(action(kind, job=het), fence())
        assert recorder.changes == [] and slurm.job(job)["job_state"] == "RUNNING"


def test_opt_in_of_one_task_of_an_array_leaves_the_others(slurm: SlurmLab) -> None:
    job = slurm.submit("sleep 300", "--array=1-3", "--comment=gpuvigil:movable")
    count = lambda: slurm.run("squeue", "-h", "-t", "R", "-j", job, "-o", "%F_%a:%S").split()  # noqa: E731
    until(lambda: len(count()) == 3, "three tasks run")
    # the last task has the array's own number as its id: that number alone would mean all three
    actuator(slurm).apply(action("move_job", job=f"{job}_3", before="restarts=0"), fence())
    until(lambda: len(count()) == 3, "three tasks run again")
    restarts = {
        (each["array_task_id"], each["restart_cnt"])
        for each in map(slurm.job, slurm.run("squeue", "-h", "-j", job, "-o", "%A").split())
    }
    assert restarts == {(1, 0), (2, 0), (3, 1)}


def test_r7_another_users_job_beside_it(slurm: SlurmLab) -> None:
    """On a shared node: drained, and nobody is stopped."""
    mine = running(slurm, "--nodelist=gn1,gn2", "--nodes=2")
    mine_free = running(slurm, "--exclude=gn1,gn2")
    theirs = running(slurm, "--exclude=gn2,gn3,gn4", "--uid=nobody", "--output=/dev/null", "--chdir=/tmp")
    recorder = Recorder()
    hands = actuator(slurm, recorder)
    hands.apply(action("hold", "gn1"), fence())
    for job in (mine, theirs):
        for kind in ("move_job", "stop_job"):
            with pytest.raises(RefusedError, match="other_users"):
                hands.apply(action(kind, "gn3", job=job), fence())
    assert len(recorder.changes) == 1
    assert {slurm.job(each)["job_state"] for each in (mine, theirs)} == {"RUNNING"}
    hands.apply(action("stop_job", job=mine_free), fence())


@pytest.mark.parametrize("job", ["", "*", "999999", "1 2", "--user=root", "gn1", "-1"])
def test_r13_no_target_but_one_known_job(slurm: SlurmLab, job: str) -> None:
    alive = running(slurm)
    recorder = Recorder()
    for kind in ("move_job", "stop_job"):
        with pytest.raises(RefusedError):
            actuator(slurm, recorder).apply(action(kind, job=job), fence())
    assert recorder.changes == [] and slurm.job(alive)["job_state"] == "RUNNING"


def test_stop(slurm: SlurmLab) -> None:
    job = running(slurm)
    recorder = Recorder()
    hands = actuator(slurm, recorder)
    look = hands.look(action("stop_job", job=job))
    hands.apply(action("stop_job", job=job, before=look.token), fence())
    until(lambda: slurm.job(job)["job_state"] == "CANCELLED", "it is cancelled")
    asked = action("stop_job", job=job, before=look.token, state="ambiguous")
    assert hands.look(asked).state == "done"
    hands.apply(asked, fence())
    assert len(recorder.changes) == 1
    with pytest.raises(RefusedError, match="runs on no node"):
        hands.apply(action("move_job", job=job), fence())


def test_a_job_without_a_signal_is_not_signalled(slurm: SlurmLab) -> None:
    """USR1 kills a script that does not expect it: only the job's own word allows the signal."""
    job = running(slurm)
    recorder = Recorder()
    actuator(slurm, recorder).apply(action("move_job", job=job), fence())
    assert not [argv for argv in recorder.changes if argv[0] == "scancel"]
    assert slurm.job(job)["restart_cnt"] == 1


def test_a_save_longer_than_the_lease_is_waited_for_in_the_next_turn(slurm: SlurmLab) -> None:
    job = running(slurm, "--comment=gpuvigil:signal=USR1@8", script=TRAIN)
    until(lambda: read(slurm.folder / f"at-{job}"), "it trains")
    recorder = Recorder()
    hands = actuator(slurm, recorder)
    with pytest.raises(RefusedError, match="not requeued in this turn"):
        hands.apply(action("move_job", job=job), fence(left_s=16))
    assert slurm.job(job)["restart_cnt"] == 0
    until(lambda: read(slurm.folder / f"ck-{job}"), "it saved")
    hands.apply(action("move_job", job=job), fence())
    assert slurm.job(job)["restart_cnt"] == 1
    assert len([argv for argv in recorder.changes if argv[0] == "scancel"]) == 1
