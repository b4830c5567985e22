"""A person's part: what waits for an approval and how long, and what a test that passed has answered."""

from __future__ import annotations

from unit.repair_world import World

from gpuvigil_collector.repair.walk import Word


def test_recommend_waits_for_a_person_and_does_it_then() -> None:
    world = World()
    world.mode = "recommend"
    world.fault("gpu_lost")
    world.tick(10)
    assert (world.effects.asked, world.saves.asked) == ([], [])
    assert approved(world) == "checkpoint"
    assert (world.effects.asked, world.saves.asked) == ([], ["j1"])
    assert approved(world) == "hold"
    assert world.effects.asked == [("hold", "n1")]
    assert world.case.held


def approved(world: World) -> str:
    """Approve the one action that waits, as eve; return its kind."""
    (waiting,) = [action for action in world.desk.hands.actions.values() if action.state == "awaiting"]
    answer = world.desk.ask(lambda desk, now: desk.hands.approve(waiting.proposal.id, "eve", now))
    world.tick(3)
    assert answer.result(0).proposal.approved_by == "eve"
    return waiting.proposal.kind


def test_a_person_has_longer_for_an_approval_than_the_step_has() -> None:
    world = World()
    world.mode = "recommend"
    world.fault("gpu_lost")
    world.tick(50, seconds=60)  # a checkpoint has 10 minutes, a hold 2
    assert approved(world) == "checkpoint"
    world.tick(50, seconds=60)
    assert approved(world) == "hold"
    assert world.effects.asked == [("hold", "n1")]


def test_after_an_approval_the_step_has_its_own_time() -> None:
    world = World()
    world.mode = "recommend"
    world.fault("gpu_lost")
    world.saves.word = Word("waits", "armed")
    world.tick(50, seconds=60)
    assert approved(world) == "checkpoint"
    world.tick(8, seconds=60)
    assert world.case.jobs == {"j1": "pending"}
    world.tick(4, seconds=60)
    assert world.case.jobs == {"j1": "impossible"}


def test_a_checkpoint_that_a_person_rejects_ends_the_case() -> None:
    world = World()
    world.mode = "recommend"
    world.fault("gpu_lost")
    world.tick(5)
    name = world.case.action
    world.desk.ask(lambda desk, now: desk.hands.reject(name, "eve", "not now", now))
    world.tick(2)
    assert (world.case.outcome, world.saves.asked, world.effects.asked) == ("rejected", [], [])
