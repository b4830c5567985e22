"""When an effect that nobody answered for is believed absent: never while it may still arrive (R3, R4)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from unit.action_help import World, action

from gpuvigil_collector.action import Look


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    made.fake.arrives_s = 40.0
    assert made.executor.resume()
    return made


def test_r4_where_effects_arrive_soon_or_never_absent_is_believed_sooner(world):
    world.fake.answers = ["lost"]
    world.executor.submit(action(deadline_s=600.0))
    world.step(1)
    world.step(7, after_s=5)
    assert world.state() == "ambiguous"
    world.step(3, after_s=10)
    assert world.state() == "failed" and world.fake.applied == ["a1"]


def test_r4_a_scheduler_that_stood_may_still_have_the_request_in_its_queue(world):
    world.fake.answers, world.fake.looks = ["lost"], ["absent", "absent", *["unknown"] * 20]
    world.executor.submit(action(deadline_s=600.0))
    world.step(1)
    world.step(40, after_s=30)
    assert world.state() == "failed"
    world.fake.answers, world.fake.looks = ["lost"], ["absent", *["unknown"] * 10, "absent", "done"]
    world.executor.submit(action("a2", deadline_s=6000.0))
    world.step(1)
    world.step(12, after_s=30)
    assert world.state("a2") == "done", "not given up at the first look that was answered"


def test_r4_what_was_answered_has_arrived_however_long_it_takes(world):
    world.fake.looks = ["absent"] * 20
    world.executor.submit(action(deadline_s=600.0))
    world.step(1)
    world.step(15, after_s=30)
    assert world.state() == "issued", "a job may take its time to end"


def test_r3_what_a_crash_left_without_an_answer_is_tried_anew_once_it_cannot_arrive(tmp_path):
    world = World(tmp_path)
    world.fake.arrives_s = 40.0
    world.store.write(replace(action(deadline_s=600.0), state="issued", actuator="fake"))
    world.store.write(
        replace(action("a2", node="n2", deadline_s=600.0), state="issued", actuator="fake", answered=True)
    )
    assert world.executor.resume()
    assert (world.state(), world.state("a2")) == ("ambiguous", "ambiguous")
    world.step(6, after_s=10)
    assert (world.state(), world.state("a2")) == ("failed", "ambiguous")
    assert world.fake.applied == []


def test_r4_what_is_there_in_part_has_arrived(world):
    world.fake.answers = ["lost"]
    world.executor.submit(action(deadline_s=600.0))
    world.fake.look = lambda asked: Look(state="absent", detail="3 of 8", partly=bool(world.fake.applied))
    world.step(1)
    world.step(20, after_s=30)
    assert world.state() == "ambiguous", "a gang is not evicted once more with its replacements"


def test_r4_a_look_that_says_failed_proves_that_it_was_taken(world):
    world.fake.answers, world.fake.looks = ["lost"], ["absent", "failed"]
    world.executor.submit(action())
    world.step(2, after_s=1)
    kept = world.store.get("a1")
    assert (kept.state, kept.answered) == ("failed", True)
