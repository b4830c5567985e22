"""A person's word on an action that stays ambiguous: it ends as said, and nobody looks for it any more."""

from __future__ import annotations

import time

import pytest
from unit.action_help import World, action


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    assert made.executor.resume()
    return made


def left_ambiguous(world):
    """An action whose answer was lost and whose effect nobody can see."""
    world.fake.answers, world.fake.looks = ["lost"], ["absent", *["unknown"] * 50]
    world.executor.submit(action())
    world.step(3, after_s=5)
    assert world.state() == "ambiguous"


@pytest.mark.parametrize("ended", ["done", "failed"])
def test_r4_a_person_settles_what_stays_ambiguous_and_nobody_looks_any_more(world, ended):
    left_ambiguous(world)
    settled = world.executor.settle("a1", ended, "settled by ann: saw it on the console")
    assert (settled.state, world.state(), settled.outcome) == (ended, ended, world.store.get("a1").outcome)
    assert world.told()[-1] == ("a1", ended) and "settled by ann" in settled.outcome
    left = len(world.fake.looks)
    world.step(20, after_s=100)
    assert (len(world.fake.looks), world.state(), world.fake.applied) == (left, ended, ["a1"])
    open_now = [past for past in world.store.past(time.time_ns()) if past.id == "a1"]
    assert len(open_now) == (ended == "done"), "what a person saw fail uses no budget up"
    again = World(None, store=world.store)
    assert again.executor.resume() and again.state() == ended and again.fake.applied == []


def test_r4_a_person_settles_only_what_is_ambiguous(world):
    for name in ("a1", "nothing", ""):
        with pytest.raises(KeyError):
            world.executor.settle(name, "done", "x")
    world.executor.submit(action())
    world.step(3)
    with pytest.raises(KeyError):
        world.executor.settle("a1", "failed", "x")
    assert world.state() == "done"


def test_r4_a_look_that_ends_after_the_persons_word_changes_nothing(world):
    left_ambiguous(world)
    look = world.fake.look

    def slow(asked):
        world.executor.settle("a1", "failed", "settled by ann: it never came")
        world.fake.looks = ["done"]
        return look(asked)

    world.fake.look = slow
    world.step(after_s=100)
    assert world.state() == "failed" and world.told()[-1] == ("a1", "failed")


def test_r4_a_persons_word_that_the_disk_did_not_take_is_written_later(world):
    left_ambiguous(world)
    write, world.store.write = world.store.write, lambda _: False
    assert world.executor.settle("a1", "done", "settled by ann").state == "done"
    world.step(2)
    assert world.state() == "ambiguous"
    world.store.write = write
    world.step()
    assert world.state() == "done"
