"""The executor: intent first, a look before and after, never twice, never blindly (R4), none in observe."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.action_help import FakeActuator, World, action, made_by_the_desk, proposal

from gpuvigil_collector.action import Fence, FleetState, Gate, NodeState, RefusedError, Verdict
from gpuvigil_collector.attempt import SETTLE


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    assert made.executor.resume()
    return made


def verdict(effect="act", *, allowed=True, **more):
    gate = "" if allowed else "budgets"
    return Verdict(
        allowed=allowed,
        gate=gate,
        gates=(Gate(name="budgets", passed=allowed, detail=""),),
        effect=effect,
        **more,
    )


def test_an_allowed_action_is_carried_out_and_every_step_is_told(world):
    submitted = world.executor.submit(action())
    assert (submitted.state, submitted.actuator, world.fake.applied) == ("intended", "fake", [])
    world.step(2)
    assert world.told() == [("a1", "intended"), ("a1", "issued"), ("a1", "issued"), ("a1", "done")]
    assert world.fake.applied == ["a1"] and world.fake.effects == {"n1": "a1"}
    (past,) = world.store.past(time.time_ns())
    assert past.open and past.at_ns == world.store.get("a1").issued_ns
    world.executor.told(world.executor.results()[-1].sequence)
    assert world.told() == []


def test_the_issue_is_on_disk_before_the_effect(world):
    seen = []
    world.fake.before_apply = lambda asked: seen.append(world.state())
    world.executor.submit(action())
    world.step()
    assert seen == ["issued"]


def test_one_id_is_begun_once_whatever_is_submitted(world):
    for _ in range(3):
        world.executor.submit(action())
        world.step(3)
    world.executor.submit(action(state="denied"))
    assert world.fake.applied == ["a1"] and world.state() == "done"


@pytest.mark.parametrize(
    ("look", "state", "outcome"),
    [("done", "done", "already so"), ("foreign", "failed", "foreign"), ("unknown", "failed", "unknown")],
)
def test_the_look_before_decides(world, look, state, outcome):
    world.fake.looks = [look]
    world.executor.submit(action())
    world.step(5)
    assert world.state() == state and outcome in world.store.get("a1").outcome
    assert world.fake.applied == []


def _at(directory, hinder):
    """A world in which `hinder` happens between the issue's record and the effect."""
    made = World(directory)
    made.executor.resume()
    made.executor.submit(action())
    write = made.store.write

    def written(one):
        ok = write(one)
        if one.state == "issued":
            hinder(made)
        return ok

    made.store.write = written
    return made


@pytest.mark.parametrize("ours", ["lost", "other_generation"])
def test_r2_a_lease_lost_at_the_last_moment_stops_the_effect(tmp_path, ours):
    def hinder(made):
        made.lease.ours, made.lease.generation = ours != "lost", 7 + (ours != "lost")

    world = _at(tmp_path, hinder)
    world.step(3)
    assert world.fake.applied == [] and world.state() == "failed"
    assert "not begun" in world.store.get("a1").outcome and "lease" in world.store.get("a1").outcome


@pytest.mark.parametrize("answer", ["ann: looks wrong", None])
def test_r10_a_pause_at_the_last_moment_stops_the_effect(tmp_path, answer):
    paused = [""]
    world = World(tmp_path, paused=lambda: paused[0])
    world.executor.resume()
    write = world.store.write

    def written(one):
        if one.state == "issued":
            paused[0] = answer
        return write(one)

    world.store.write = written
    world.executor.submit(action())
    world.step(3)
    assert world.fake.applied == [] and world.state() == "failed"
    world.executor.submit(action("tell", kind="notify"))
    world.step(3)
    assert world.fake.applied == ["tell"], "people are told also while it is paused"


def test_an_old_verdict_is_not_acted_on(world):
    world.executor.submit(action(decided_ns=time.time_ns() - 61_000_000_000))
    world.executor.submit(action("a2", decided_ns=time.time_ns() + 10_000_000_000))
    world.step(4)
    assert world.fake.applied == [] and (world.state(), world.state("a2")) == ("failed", "failed")


def test_an_action_without_an_actuator_fails(world):
    world.executor.submit(action(kind="reset_gpu"))
    world.step()
    assert "no actuator" in world.store.get("a1").outcome and world.state() == "failed"


def test_a_refusal_is_certain(world):
    world.fake.answers = [RefusedError("somebody drains it")]
    world.executor.submit(action())
    world.step(3)
    assert (world.state(), world.store.get("a1").outcome) == ("failed", "somebody drains it")
    assert world.store.past(time.time_ns()) == ()


def test_the_queue_is_bounded(world):
    states = [world.executor.submit(action(f"a{n}")).state for n in range(70)]
    assert states.count("intended") == 64 and states[-1] == "failed"
    assert world.state("a69") is None, "it may be proposed anew"


def test_r4_a_lost_answer_is_ambiguous_until_a_look_tells(world):
    world.fake.answers, world.fake.looks = ["unanswered"], ["absent", "unknown", "unknown", "absent"]
    world.executor.submit(action())
    world.step(3, after_s=31)
    assert world.state() == "ambiguous" and world.store.past(time.time_ns())[0].open
    world.step(2, after_s=31)
    assert world.state() == "done" and world.fake.applied == ["a1"]


def test_r4_what_stays_unknown_stays_ambiguous_and_in_the_budgets(world):
    world.fake.answers, world.fake.looks = ["unanswered"], ["absent", *["unknown"] * 500]
    world.executor.submit(action())
    world.step(400, after_s=31)
    assert world.state() == "ambiguous" and len(world.store.past(time.time_ns())) == 1
    assert len(world.fake.looks) < 200, "it is looked at every half a minute"


def test_r4_absent_is_believed_only_after_it_could_have_arrived(world):
    world.fake.answers = ["lost"]
    world.executor.submit(action(deadline_s=100.0))
    world.step(1)
    world.step(5, after_s=SETTLE * 100 / 5 - 1)
    assert world.state() == "ambiguous"
    world.step(1, after_s=31)
    assert world.state() == "failed" and world.fake.applied == ["a1"]


def test_a_bug_in_an_actuator_is_ambiguous_told_and_not_repeated(world):
    world.fake.answers, world.fake.looks = [KeyError("x")], ["absent", ZeroDivisionError(), "unknown"]
    world.executor.submit(action())
    world.step(2, after_s=31)
    assert world.state() == "ambiguous" and len(world.executor.faults()) == 2
    world.step(2, after_s=31)
    assert world.state() == "done" and world.fake.applied == ["a1"]


STEPS = st.lists(st.sampled_from(["absent", "unknown", "foreign", "truth"]), max_size=8)


@settings(max_examples=int(os.environ.get("GPUVIGIL_EXAMPLES", "150")), deadline=None)
@given(
    answer=st.sampled_from(["lost", "unanswered"]),
    looks=STEPS,
    crash=st.booleans(),
    kind=st.sampled_from(["hold", "reboot"]),
)
def test_r4_a_timeout_after_the_request_is_never_issued_again(tmp_path_factory, answer, looks, crash, kind):
    """Whatever the looks tell, and with a crash in between: one apply; done only when the effect is there."""
    directory = tmp_path_factory.mktemp("r4")
    fake = FakeActuator(answers=[answer])
    world = World(directory, fake)
    world.store._database.execute("PRAGMA synchronous = OFF")  # 1000 of them
    world.executor.resume()
    world.executor.submit(action(kind=kind))
    world.step()
    if crash:
        world.store.close()
        world = World(directory, fake)
        world.executor.resume()
    fake.looks = [look for look in looks if look != "truth"]
    world.step(12, after_s=31)
    world.executor.submit(action(kind=kind))
    world.step(2, after_s=31)
    assert fake.applied == ["a1"]
    assert world.state() in ("done", "failed")
    if world.state() == "done":
        assert fake.effects == {"n1": "a1"}
    if answer == "unanswered" and not looks:
        assert world.state() == "done"
    world.store.close()


@pytest.mark.parametrize("left", ["intended", "issued", "ambiguous"])
@pytest.mark.parametrize("so", ["absent", "done", "foreign", "unknown"])
def test_r3_what_a_crash_left_is_looked_at_and_never_repeated(tmp_path, left, so):
    first = World(tmp_path)
    first.store.write(replace(action(state=left), actuator="fake"))
    first.store.close()
    world = World(tmp_path, FakeActuator(looks=[so] * 50))
    assert world.executor.resume()
    world.step(8, after_s=31)
    told = {"done": "done", "unknown": "ambiguous", "absent": "failed", "foreign": "failed"}[so]
    assert world.state() == ("failed" if left == "intended" else told)
    assert world.fake.applied == []


def test_nothing_is_taken_before_what_was_open_is_read(tmp_path):
    world = World(tmp_path)
    assert world.executor.submit(action()).state == "failed"
    assert world.executor.resume() and world.executor.submit(action()).state == "intended"


@pytest.mark.parametrize(
    ("told", "state"),
    [
        (verdict("none", allowed=False), "denied"),
        (verdict("none"), "would"),
        (verdict("recommend", needs_approval=True), "awaiting"),
        (verdict("act", interrupts=("j1",)), "intended"),
    ],
)
def test_r9_what_the_mode_makes_of_a_verdict(world, told, state):
    fence = Fence(holder="me", generation=7, until_ns=time.time_ns() + 20_000_000_000)
    fleet = FleetState(
        mode="act", nodes={"n1": NodeState(node="n1", gpus=8, domain="d", partition="p")}, fence=fence
    )
    made = replace(made_by_the_desk(told, fleet), proposal=proposal())
    assert (made.state, made.domain, made.partition, made.generation) == (state, "d", "p", 7)
    world.executor.submit(made)
    world.executor.submit(made)
    world.step(3)
    assert world.told()[0] == ("a1", state)
    assert bool(world.fake.applied) == (state == "intended"), "only act has effects"
    assert state == "intended" or world.told() == [("a1", state)], (
        "the same answer again is not written again"
    )


def test_an_approved_action_goes_on_from_awaiting(world):
    world.executor.submit(action(state="awaiting"))
    world.executor.submit(action(approved_by="ann"))
    world.step(2)
    assert [state for _, state in world.told()] == ["awaiting", "intended", "issued", "issued", "done"]


def test_the_thread_takes_up_carries_out_and_ends(tmp_path):
    world = World(tmp_path)
    world.executor._attempt = world.executor._attempt.__class__(
        store=world.store, lease=world.lease, paused=lambda: ""
    )
    world.executor.start()
    end = time.monotonic() + 30
    while world.state() != "done" and time.monotonic() < end:
        world.executor.submit(action())
        time.sleep(0.02)
    assert world.executor.stop(10) and world.state() == "done" and world.fake.applied == ["a1"]
