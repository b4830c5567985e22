"""Drain and give back nodes of a real Slurm: only what is ours, once, and never past another's mark."""

from __future__ import annotations

import itertools
import random
import subprocess
from pathlib import Path

import pytest
from integration.slurm_actions import Recorder, action, actuator, fence
from integration.slurm_lab import NODES, SlurmLab, until

from gpuvigil_collector.action import Kind, RefusedError
from gpuvigil_collector.actuators.slurm import SlurmActuator
from gpuvigil_collector.slurm import reason

pytestmark = pytest.mark.needs_slurm


def test_drain_and_give_back(slurm: SlurmLab) -> None:
    hands = actuator(slurm)
    assert hands.look(action("hold")).state == "absent"
    said = hands.apply(action("hold"), fence())
    node = slurm.node("gn1")
    assert node["reason"] == "gpuvigil: gpu_lost gpu 3 fell off the bus [inc-7 g3]" and node["reason"] in said
    assert node["state_flags"] == ["DRAIN"]
    assert hands.look(action("hold")).state == "done"
    assert hands.look(action("release")).state == "absent"
    hands.apply(action("release"), fence(generation=4))
    assert slurm.node("gn1")["reason"] == "" and hands.look(action("release")).state == "done"
    until(slurm.all_idle, "the node takes work again")


def test_idempotent(slurm: SlurmLab) -> None:
    recorder = Recorder()
    hands = actuator(slurm, recorder)
    hands.apply(action("hold"), fence())
    hands.apply(action("hold"), fence(generation=4))
    assert len(recorder.changes) == 1
    hands.apply(action("release"), fence(generation=4))
    hands.apply(action("release"), fence(generation=4))
    assert len(recorder.changes) == 2


def test_a_drain_ends_with_its_last_incident(slurm: SlurmLab) -> None:
    hands = actuator(slurm)
    for incident in ("inc-a", "inc-b"):
        hands.apply(action("hold", incident=incident), fence())
    assert slurm.node("gn1")["reason"].endswith("[inc-a inc-b g3]")
    hands.apply(action("release", incident="inc-a"), fence())
    assert slurm.node("gn1")["reason"].endswith("[inc-b g3]")
    assert hands.look(action("hold", incident="inc-b")).state == "done"
    hands.apply(action("release", incident="inc-b"), fence())
    assert "DRAIN" not in slurm.node("gn1")["state_flags"]


@pytest.mark.parametrize(
    "theirs",
    [
        ("state=drain", "reason=bad PSU, ticket 5"),
        ("state=down", "reason=bad PSU, ticket 5"),
        ("state=fail", "reason=bad PSU, ticket 5"),
        ("state=drain", "reason=gpuvigil: gpu_lost [inc-7 g3] do not touch, RMA"),
        ("state=drain", "reason=gpuvigil: by hand"),
    ],
)  # fmt: skip
def test_what_others_wrote_stays(slurm: SlurmLab, theirs: tuple[str, ...]) -> None:
    slurm.run("scontrol", "update", "nodename=gn1", *theirs)
    before = slurm.node("gn1")
    recorder = Recorder()
    hands = actuator(slurm, recorder)
    assert hands.look(action("hold")).state == "foreign"
    with pytest.raises(RefusedError, match="foreign"):
        hands.apply(action("hold"), fence())
    if "DRAIN" in before["state_flags"]:
        assert hands.look(action("release")).state == "foreign"
        with pytest.raises(RefusedError, match="foreign"):
            hands.apply(action("release"), fence())
    else:
        hands.apply(action("release"), fence())
    assert recorder.changes == []
    after = slurm.node("gn1")
    assert [after[k] for k in ("state", "state_flags", "reason")] == [
        before[k] for k in ("state", "state_flags", "reason")
    ]


def test_release_leaves_down_and_reservation(slurm: SlurmLab) -> None:
    """undrain, not resume: what came on top of our drain stays."""
    hands = actuator(slurm)
    hands.apply(action("hold", "gn2"), fence())
    slurm.run(
        "scontrol", "create", "reservation", "reservationname=swap-nic", "starttime=now", "duration=60",
        "flags=maint,ignore_jobs", "nodes=gn2", "user=root",
    )  # fmt: skip
    hands.apply(action("release", "gn2"), fence())
    until(lambda: "MAINTENANCE" in slurm.node("gn2")["state_flags"], "the reservation holds the node")
    hands.apply(action("hold", "gn1"), fence())
    ours = slurm.node("gn1")["reason"]
    slurm.run("scontrol", "update", "nodename=gn1", "state=down", f"reason={ours}")
    assert reason.parse(ours) and "DRAIN" in slurm.node("gn1")["state_flags"]
    hands.apply(action("release", "gn1"), fence())
    assert slurm.node("gn1")["state"] == "down"


def test_running_jobs_go_on(slurm: SlurmLab) -> None:
    mine = slurm.submit("sleep 300", "--nodelist=gn1", "--gres=gpu:2")
    theirs = slurm.submit("sleep 300", "--nodelist=gn1", "--uid=nobody", "--output=/dev/null", "--chdir=/tmp")
    until(lambda: {slurm.job(j)["job_state"] for j in (mine, theirs)} == {"RUNNING"}, "both run")
    actuator(slurm).apply(action("hold"), fence())
    waiting = slurm.submit("true", "--nodelist=gn1")
    assert {slurm.job(j)["job_state"] for j in (mine, theirs)} == {"RUNNING"}
    assert slurm.job(waiting)["job_state"] == "PENDING"


@pytest.mark.parametrize("node", ["", "*", "ALL", "all", "gn[1-4]", "gn1,gn2", "gn9", ".*", "gn1 state=down"])
def test_r13_no_target_but_one_known_node(slurm: SlurmLab, node: str) -> None:
    recorder = Recorder()
    hands = actuator(slurm, recorder)
    for kind in ("hold", "release"):
        with pytest.raises(RefusedError, match=r"does not know|one plain name"):
            hands.apply(action(kind, node), fence())
    assert recorder.changes == [] and slurm.all_idle()


def test_fencing(slurm: SlurmLab) -> None:
    recorder = Recorder()
    hands = actuator(slurm, recorder)
    with pytest.raises(RefusedError, match="lease"):
        hands.apply(action("hold"), fence(left_s=-1))
    assert recorder.argv == []
    hands.apply(action("hold"), fence(generation=9))
    with pytest.raises(RefusedError, match="generation 9"):
        hands.apply(action("release"), fence(generation=8))
    with pytest.raises(RefusedError, match="generation 9"):
        hands.apply(action("hold", incident="inc-8"), fence(generation=8))
    assert slurm.node("gn1")["reason"].endswith("[inc-7 g9]")


def test_hostile_words_in_a_reason(slurm: SlurmLab) -> None:
    """What the driver or a user wrote cannot add fields, forge a mark or reach a terminal."""
    why = "\x1b[31m x' \" state=resume [inc-1 g9]\n" + "long " * 50 + "\\"
    actuator(slurm).apply(action("hold", why=why), fence())
    written = slurm.node("gn1")["reason"]
    mark = reason.parse(written)
    assert mark is not None and mark.incidents == ("inc-7",) and len(mark.head) <= 60
    assert slurm.node("gn1")["state_flags"] == ["DRAIN"]
    assert written.split(" [")[0] in slurm.run("sinfo", "-R", "-h", "-o", "%60E")


def test_uninstall_as_documented_gives_back_what_is_ours_alone(slurm: SlurmLab) -> None:
    """The lines of docs/slurm.md, run as they stand there."""
    docs = (Path(__file__).resolve().parents[2] / "docs/slurm.md").read_text()
    lines = docs.partition("```sh\n")[2].partition("```")[0]
    actuator(slurm).apply(action("hold", "gn1"), fence())
    actuator(slurm).apply(action("hold", "gn4", incident="inc-8"), fence())
    actuator(slurm).apply(action("hold", "gn4", incident="inc-9"), fence())
    edited = slurm.node("gn1")["reason"] + " mine now"
    slurm.run("scontrol", "update", "nodename=gn2", "state=drain", f"reason={edited}")
    slurm.run("scontrol", "update", "nodename=gn3", "state=drain", "reason=bad PSU")
    slurm.run("sh", "-euc", lines)
    assert {n: slurm.node(n)["reason"] for n in NODES} == {
        "gn1": "",
        "gn2": edited,
        "gn3": "bad PSU",
        "gn4": "",
    }
    assert [n for n in NODES if "DRAIN" in slurm.node(n)["state_flags"]] == ["gn2", "gn3"]


def _admin(slurm: SlurmLab, what: str) -> None:
    """One thing that a person does to a node, by the quickest way."""
    words = {
        "drain": ("state=drain", "reason=admin: swap NIC"),
        "edit": ("reason=admin: mine now",),
        "undrain": ("state=undrain",),
        "resume": ("state=resume",),
        "down": ("state=down", "reason=admin: PSU"),
    }[what]
    subprocess.run(
        ["scontrol", "update", "nodename=gn1", *words], env=slurm.env, capture_output=True, timeout=20
    )


def _schedule(slurm: SlurmLab, hands: SlurmActuator, seed: int) -> tuple[str, ...]:
    """Play one order of ours and theirs; return it. After each of our steps what is theirs must stand."""
    rng = random.Random(seed)
    played = []
    for _ in range(rng.randint(2, 5)):
        step = rng.choice(
            ["hold", "release", "hold-b", "release-b", "drain", "edit", "undrain", "resume", "down"]
        )
        played.append(step)
        if step.partition("-")[0] not in ("hold", "release"):
            _admin(slurm, step)
            continue
        before = slurm.node("gn1")
        theirs = before["reason"].startswith("admin:")
        try:
            hands.apply(
                action(step.partition("-")[0], incident=f"inc-{step.partition('-')[2] or 'a'}"),  # type: ignore[arg-type]
                fence(generation=seed + 1),
            )
        except RefusedError:
            assert theirs or before["state"] == "down", (seed, played, before)
        after = slurm.node("gn1")
        if theirs:
            assert after["reason"] == before["reason"], (seed, played, before, after)
            assert ("DRAIN" in after["state_flags"]) == ("DRAIN" in before["state_flags"]), (seed, played)
        assert (after["state"] == "down") == (before["state"] == "down"), (seed, played, before, after)
    for state in ("undrain", "resume"):
        subprocess.run(
            ["scontrol", "update", "nodename=gn1", f"state={state}"],
            env=slurm.env,
            capture_output=True,
            timeout=20,
        )
    return tuple(played)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("part", range(4))
def test_r6_ownership_under_interleavings(slurm: SlurmLab, part: int, record_property) -> None:
    """1,000 orders of a person's and our steps: no foreign reason is overwritten, none is undone."""
    hands = actuator(slurm)
    played = {_schedule(slurm, hands, seed) for seed in range(part * 250, part * 250 + 250)}
    record_property("n", 250)
    assert len(played) > 200
    steps = set(itertools.chain.from_iterable(played))
    assert steps >= {"hold", "release", "drain", "edit", "down"}


@pytest.mark.parametrize(
    ("kind", "what"),
    [("hold", "drain"), ("hold", "down"), ("release", "drain"), ("release", "edit"), ("release", "undrain")],
)
def test_r6_a_person_acts_between_look_and_look(slurm: SlurmLab, kind: Kind, what: str) -> None:
    """Between the executor's look and the actuator's own, a person takes the node: it stays theirs."""
    recorder = Recorder()
    hands = actuator(slurm, recorder)
    if kind == "release":
        actuator(slurm).apply(action("hold"), fence())
    assert hands.look(action(kind)).state == "absent"
    _admin(slurm, what)
    if what == "undrain":
        hands.apply(action(kind), fence())  # what was wanted is so already
    else:
        with pytest.raises(RefusedError, match="foreign"):
            hands.apply(action(kind), fence())
        assert slurm.node("gn1")["reason"].startswith("admin:")
    assert recorder.changes == []
