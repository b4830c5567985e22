"""What the safety kernel is told of a real Slurm: holds, maintenance, domains, jobs and their refusals."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from integration.slurm_actions import action, actuator, client_env, fence
from integration.slurm_lab import NODES, SlurmLab, until

from gpuvigil_collector.action import NodeState
from gpuvigil_collector.repair.schedulers import SlurmScheduler
from gpuvigil_collector.slurm.client import SlurmClient
from gpuvigil_collector.slurm.hostlist import expand
from gpuvigil_collector.slurm.settings import SlurmSettings
from gpuvigil_collector.slurm.view import SlurmView, read
from gpuvigil_protos.settings import Seconds

pytestmark = pytest.mark.needs_slurm


def view(slurm: SlurmLab) -> SlurmView:
    return read(SlurmClient(environment=client_env(slurm)), time.time_ns(), 10)


def state(slurm: SlurmLab, node: str, **known: Any) -> NodeState:
    return view(slurm).node_state(NodeState(node=node, gpus=8, **known))


def test_idle_cluster(slurm: SlurmLab) -> None:
    seen = view(slurm)
    assert tuple(seen.nodes) == NODES and seen.jobs == {} and seen.troubles == ()
    assert {n: (each.gpus, each.domain) for n, each in seen.nodes.items()} == {
        "gn1": (8, "rack1"), "gn2": (8, "rack1"), "gn3": (8, "rack2"), "gn4": (8, "rack2"),
    }  # fmt: skip
    assert seen.nodes["gn4"].partitions == ("gpu", "small")
    assert state(slurm, "gn4") == NodeState(node="gn4", gpus=8, partition="small", domain="rack2")
    assert seen.partition(seen.nodes["gn4"], ("gpu", "small")) == "gpu", (
        "one that the site configured goes first"
    )
    assert state(slurm, "gn1.example.org").domain == "rack1"
    assert state(slurm, "elsewhere") == NodeState(node="elsewhere", gpus=8)
    assert seen.find("localhost") is None, "four nodes on one host: none is meant"


def test_holds(slurm: SlurmLab) -> None:
    actuator(slurm).apply(action("hold"), fence())
    slurm.run("scontrol", "update", "nodename=gn2", "state=drain", "reason=bad\x1b[31m PSU")
    ours, theirs = state(slurm, "gn1"), state(slurm, "gn2")
    assert (ours.hold, theirs.hold, state(slurm, "gn3").hold) == ("ours", "foreign", "none")
    assert "[inc-7 g3]" in ours.held_why and theirs.held_why.isprintable() and "PSU" in theirs.held_why
    assert ours.maintenance == theirs.maintenance == ""


def test_reservation_is_maintenance(slurm: SlurmLab) -> None:
    slurm.run(
        "scontrol", "create", "reservation", "reservationname=swap-nic", "starttime=now", "duration=60",
        "flags=maint,ignore_jobs", "nodes=gn[2-3]", "user=root",
    )  # fmt: skip
    slurm.run(
        "scontrol", "create", "reservation", "reservationname=class", "starttime=now", "duration=60",
        "nodes=gn4", "user=root",
    )  # fmt: skip
    slurm.run(
        "scontrol", "create", "reservation", "reservationname=later", "starttime=now+2hours", "duration=60",
        "flags=maint", "nodes=gn1", "user=root",
    )  # fmt: skip
    seen = {node: state(slurm, node).maintenance for node in NODES}
    assert seen == {
        "gn1": "",
        "gn2": "slurm: reservation swap-nic",
        "gn3": "slurm: reservation swap-nic",
        "gn4": "",
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("state=down", "reason=PSU"), "slurm: set down (DOWN: PSU)"),
        (("state=fail", "reason=PSU"), "slurm: set to fail (FAIL: PSU)"),
        (("state=drain", "reason=Kill task failed"), "slurm: Kill task failed"),
        (("state=drain", "reason=PSU"), ""),
    ],
)
def test_states_of_maintenance(slurm: SlurmLab, words: tuple[str, ...], expected: str) -> None:
    slurm.run("scontrol", "update", "nodename=gn1", *words)
    assert state(slurm, "gn1").maintenance == expected


def test_a_dead_node_is_no_maintenance(slurm: SlurmLab) -> None:
    """slurmctld's own DOWN is an observation: with a silent agent it says that the node is dead."""
    child = slurm.children["gn3"]
    child.kill()
    child.wait(timeout=10)
    try:
        until(lambda: slurm.node("gn3")["state"] == "down", "slurmctld misses it", 60)
        found = state(slurm, "gn3", silent=True)
        assert found.maintenance == "" and found.dead
        assert not state(slurm, "gn3").dead, "its agent speaks: it is not dead"
    finally:
        slurm.start_node("gn3")
        until(lambda: slurm.node("gn3")["state"] == "idle", "it is back", 60)


def test_jobs(slurm: SlurmLab) -> None:
    hostile = "--job-name=x JobState=FAILED NodeList=gn4"
    wide = slurm.submit("sleep 300", "--nodes=2", "--gres=gpu:h100:4", "--nodelist=gn[1-2]", hostile)
    array = slurm.submit("sleep 300", "--array=5-6", "--no-requeue", "--nodelist=gn3")
    theirs = slurm.submit("sleep 300", "--uid=nobody", "--output=/dev/null", "--chdir=/tmp", "--nodelist=gn1")
    waits = slurm.submit("sleep 300", "--nodes=4", "--exclusive")
    until(lambda: len(view(slurm).jobs) == 4, "four run")
    seen = view(slurm)
    assert set(seen.jobs) == {wide, f"{array}_5", f"{array}_6", theirs} and waits not in seen.jobs
    job = seen.job_state(wide)
    assert job is not None and (job.nodes, job.gpus, job.refusals) == (("gn1", "gn2"), 8, ("other_users",))
    assert seen.jobs[wide].gpu_indices == {"gn1": (0, 1, 2, 3), "gn2": (0, 1, 2, 3)}
    task = seen.job_state(f"{array}_6")
    assert task is not None and task.refusals == ("no_requeue", "array")
    assert state(slurm, "gn1").jobs == tuple(sorted((wide, theirs)))
    assert seen.job_state("gone") is None


def test_hostlists_as_scontrol_reads_them(slurm: SlurmLab) -> None:
    for text in ("gn[1-4]", "gn[01-03,7]", "a,b[3-5],c", "r[1-2]n[08-11]", "x-1.y", "n[9-11]", "n[009-011]"):
        assert list(expand(text)) == slurm.run("scontrol", "show", "hostnames", text).split(), text


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(
        st.from_regex(r"[a-z]{1,3}(\[[0-9]{1,2}(,[0-9]{1,2})?\])?", fullmatch=True), min_size=1, max_size=3
    )
)
def test_hostlists_at_random(_slurm_server: SlurmLab, words: list[str]) -> None:
    text = ",".join(words)
    assert sorted(expand(text)) == sorted(_slurm_server.run("scontrol", "show", "hostnames", text).split())


def test_the_repair_stage_reads_it_and_a_slurmctld_that_stands_is_unknown(
    slurm: SlurmLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    quick = SlurmSettings(interval=Seconds(1), deadline=Seconds(1), stale=Seconds(2))
    scheduler = SlurmScheduler(quick, partitions=("gpu",))
    try:
        seen = until(scheduler.view, "it is read")
        assert seen.adds(NodeState(node="gn4", gpus=8)).partition == "gpu", "the one that has a mode"
        assert scheduler.trouble() == ""
        slurm.children["slurmctld"].send_signal(signal.SIGSTOP)
        until(lambda: scheduler.view() is None and scheduler.trouble(), "it is unknown, and said")
        slurm.children["slurmctld"].send_signal(signal.SIGCONT)
        until(scheduler.view, "it is read again")
    finally:
        slurm.children["slurmctld"].send_signal(signal.SIGCONT)
        scheduler.stop()
