"""A slurmctld that stands, a client that is killed, answers that are none: looked at, never repeated."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from integration.slurm_actions import Recorder, action, actuator, client_env, fence, programs
from integration.slurm_lab import SlurmLab, until
from unit.action_help import World
from unit.action_help import action as proposed

from gpuvigil_collector.action import Action, AmbiguousError, Fence, Kind, RefusedError
from gpuvigil_collector.slurm.client import SlurmClient
from gpuvigil_collector.slurm.watch import SlurmWatch
from gpuvigil_protos.settings import Seconds

pytestmark = pytest.mark.needs_slurm


def stand(slurm: SlurmLab) -> None:
    """SIGSTOP the controller: connections are taken by the kernel, and nobody answers."""
    slurm.children["slurmctld"].send_signal(signal.SIGSTOP)


def go_on(slurm: SlurmLab) -> None:
    slurm.children["slurmctld"].send_signal(signal.SIGCONT)


def stands_before(slurm: SlurmLab, *words: str) -> Callable[[tuple[str, ...]], None]:
    """Stop the controller just ahead of the one command that begins with `words`."""
    done = threading.Event()

    def before(argv: tuple[str, ...]) -> None:
        if argv[: len(words)] == words and not done.is_set():
            done.set()
            stand(slurm)

    return before


@pytest.mark.parametrize("kind", ["hold", "release", "move_job", "stop_job"])
def test_r4_slurmctld_stands_and_the_command_comes_through_late(slurm: SlurmLab, kind: Kind) -> None:
    job = slurm.submit("sleep 300") if kind in ("move_job", "stop_job") else ""
    if job:
        until(lambda: slurm.job(job)["job_state"] == "RUNNING", "it runs")
    if kind == "release":
        actuator(slurm).apply(action("hold"), fence())
    words = {"move_job": ("scontrol", "requeue"), "stop_job": ("scancel",)}.get(kind, ("scontrol", "update"))
    recorder = Recorder(stands_before(slurm, *words))
    hands = actuator(slurm, recorder, call=Seconds(2), deadline=Seconds(1))
    before = hands.look(action(kind, job=job)).token
    with pytest.raises(AmbiguousError):
        hands.apply(action(kind, job=job, before=before), fence())
    asked = action(kind, job=job, before=before, state="ambiguous")
    assert hands.look(asked).state == "unknown"
    with pytest.raises(RefusedError, match="nothing was sent"):  # while it stands, nothing more is sent
        hands.apply(asked, fence())
    go_on(slurm)
    patient = actuator(slurm, recorder)
    assert until(lambda: patient.look(asked).state != "unknown", "slurmctld answers")
    assert patient.look(asked).state == "done"
    patient.apply(asked, fence())  # a success without a second command
    assert len(recorder.changes) == 1
    if kind == "move_job":
        until(lambda: slurm.job(job)["job_state"] == "RUNNING", "it runs again")
        assert slurm.job(job)["restart_cnt"] == 1


@pytest.mark.parametrize("kind", ["hold", "move_job"])
@pytest.mark.parametrize(
    ("body", "happened"), [('$real "$@"; kill -9 $$', True), ("kill -9 $$", False)], ids=["after", "before"]
)
def test_r4_client_killed_between_command_and_answer(
    slurm: SlurmLab, tmp_path: Path, kind: Kind, body: str, happened: bool
) -> None:
    job = slurm.submit("sleep 300") if kind == "move_job" else ""
    if job:
        until(lambda: slurm.job(job)["job_state"] == "RUNNING", "it runs")
    hands = actuator(slurm)
    before = hands.look(action(kind, job=job)).token
    killed = actuator(slurm)
    killed.client.folder = programs(tmp_path, f'case $1 in --*) exec $real "$@";; esac\n{body}', "scontrol")
    with pytest.raises(AmbiguousError):
        killed.apply(action(kind, job=job, before=before), fence())
    look = hands.look(action(kind, job=job, before=before, state="ambiguous"))
    assert look.state == ("done" if happened else "absent")


@pytest.mark.parametrize(
    "body",
    [
        "echo nonsense",
        "echo '{\"nodes\": []}'",
        'echo \'{"nodes": [{"name": 7}]}\'',
        "head -c 3000000 /dev/zero",
        "printf '\\377\\376'",
        "exit 1",
        "sleep 30",
        "sinfo() { :; }; kill -9 $$",
        """printf '{"errors":[{"error":"x"}],"nodes":[]}'""",
    ],
)
def test_nonsense_is_unknown_and_nothing_is_sent(slurm: SlurmLab, tmp_path: Path, body: str) -> None:
    recorder = Recorder()
    hands = actuator(slurm, recorder, call=Seconds(1), deadline=Seconds(1))
    hands.client.folder = programs(tmp_path, body, "sinfo", "squeue")
    for asked in (
        action("hold"),
        action("release"),
        action("move_job", job="1"),
        action("stop_job", job="1"),
    ):
        assert hands.look(asked).state == "unknown"
        with pytest.raises(RefusedError, match="nothing was sent"):
            hands.apply(asked, fence())
    assert recorder.changes == []


def test_unreachable(slurm: SlurmLab, tmp_path: Path) -> None:
    """Another port: nobody listens. Not even the deadline of the client program is waited for."""
    conf = tmp_path / "slurm.conf"
    conf.write_text(
        slurm.conf.read_text().replace(f"SlurmctldPort={slurm.ports['slurmctld']}", "SlurmctldPort=1")
    )
    recorder = Recorder()
    hands = actuator(slurm, recorder, call=Seconds(1), deadline=Seconds(1))
    hands.client.environment = {**client_env(slurm), "SLURM_CONF": str(conf)}
    began = time.monotonic()
    assert hands.look(action("hold")).state == "unknown"
    with pytest.raises(RefusedError, match="nothing was sent"):
        hands.apply(action("hold"), fence())
    assert time.monotonic() - began < 3 * 2
    assert recorder.changes == []


def test_programs_that_are_not_installed(slurm: SlurmLab) -> None:
    hands = actuator(slurm)
    hands.client.folder = "/nowhere"
    assert hands.look(action("hold")).state == "unknown"
    with pytest.raises(RefusedError, match="nothing was sent"):
        hands.apply(action("hold"), fence())


def test_r5_the_view_ages_while_slurmctld_stands(slurm: SlurmLab) -> None:
    """The last view stays, says how old it is, and is no view any more once it is stale."""
    watch = SlurmWatch(SlurmClient(environment=client_env(slurm)), interval_s=0.1, deadline_s=0.5)
    watch.start()
    try:
        until(lambda: watch.state.fresh(time.time_ns(), 5), "it reads")
        stand(slurm)
        until(lambda: watch.state.trouble, "it says that it cannot read")
        assert watch.state.view is not None and watch.state.failures > 0
        until(lambda: watch.state.fresh(time.time_ns(), 1.0) is None, "the view is stale", 5)
        go_on(slurm)
        until(lambda: watch.state.fresh(time.time_ns(), 1.0), "it reads again")
        assert watch.state.trouble == ""
    finally:
        go_on(slurm)
        watch.stop()


@pytest.mark.parametrize("when", ["before", "after"])
def test_r3_the_collector_dies_around_the_requeue(slurm: SlurmLab, tmp_path: Path, when: str) -> None:
    """Issued is on disk: the next run looks, and asks for nothing again."""
    job = slurm.submit("sleep 300")
    until(lambda: slurm.job(job)["job_state"] == "RUNNING", "it runs")
    dying, recorder = actuator(slurm), Recorder()

    class Dies:
        name, kinds, look = dying.name, dying.kinds, staticmethod(dying.look)

        def apply(self, asked: Action, lease: Fence) -> str:
            if when == "after":
                dying.apply(asked, lease)
            raise KeyboardInterrupt  # as abrupt as a test can be: nothing is caught, nothing more is written

    first = World(tmp_path / "state", Dies())
    first.executor.resume()
    first.executor.submit(proposed("m1", kind="move_job", node="gn1", job=job, deadline_s=3.0))
    with pytest.raises(KeyboardInterrupt):
        first.step()
    second = World(tmp_path / "state", actuator(slurm, recorder), store=first.store)
    second.executor.resume()
    for _ in range(20):
        second.step(after_s=0.5)
        if second.state("m1") in ("done", "failed"):
            break
    assert second.state("m1") == ("done" if when == "after" else "failed")
    assert recorder.changes == []
    until(lambda: slurm.job(job)["job_state"] == "RUNNING", "it runs")
    assert slurm.job(job)["restart_cnt"] == int(when == "after")
