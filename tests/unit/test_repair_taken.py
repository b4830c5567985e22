"""A person takes our hold away: their word stands, no budget counts the node, nothing is repeated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from unit.brain_help import Rig
from unit.repair_world import World

from gpuvigil_collector.repair.case import Case
from gpuvigil_collector.repair.fleet import SchedulerView


def held_by_a_case_that_waits_for_a_person() -> World:
    world = World()
    world.scheduler = True
    world.effects.fails["validate"] = "bandwidth 40 % of its model's"
    world.fault("gpu_lost")
    world.tick(8)
    world.tick(60)
    assert (world.case.outcome, world.case.held) == ("handed_over", True)
    return world


def test_r6_a_node_that_a_person_undrained_is_not_ours_any_more() -> None:
    world = held_by_a_case_that_waits_for_a_person()
    asked = list(world.effects.asked)
    world.undrained.add("n1")
    world.tick(59)
    assert world.case.held, "one reading, or a few, may miss it"
    world.tick(5)
    assert (world.case.held, world.case.outcome) == (False, "handed_over")
    assert world.records.let_go == ["n1"], "once, on disk: its budget is free"
    assert ("hold_taken_away", "n1") in world.told
    world.tick(300)
    assert world.effects.asked == asked and world.records.let_go == ["n1"]


def test_r6_an_undrain_in_the_clean_wait_ends_the_repair_by_a_persons_hand() -> None:
    world = World()
    world.scheduler = True
    world.fault("gpu_lost")
    world.tick(8)
    world.open.clear()
    world.tick(5)
    assert world.case.clean_until_ns and not world.case.ended
    world.undrained.add("n1")
    world.tick(70)
    assert (world.case.outcome, world.case.held) == ("handed_over", False)
    world.tick(1000)
    assert "release" not in world.kinds, "there is nothing of ours to take back"


@pytest.mark.parametrize("scheduler", [True, False])
def test_a_hold_that_stands_or_that_nobody_can_see_stays_ours(scheduler: bool) -> None:
    world = held_by_a_case_that_waits_for_a_person()
    world.scheduler = scheduler
    world.undrained = {"n1"} if not scheduler else set()
    world.tick(600)
    assert world.case.held and world.records.let_go == []


def test_one_reading_that_misses_the_node_changes_nothing() -> None:
    world = held_by_a_case_that_waits_for_a_person()
    for _ in range(10):
        world.undrained.add("n1")
        world.tick(50)
        world.undrained.clear()
        world.tick(1)
    assert world.case.held and world.records.let_go == []


def test_a_disk_that_fails_leaves_it_ours_until_it_is_written() -> None:
    world = held_by_a_case_that_waits_for_a_person()
    world.undrained.add("n1")
    fails = world.records.no_longer_held
    world.records.no_longer_held = lambda node: False  # type: ignore[method-assign]
    world.tick(100)
    assert world.case.held
    world.records.no_longer_held = fails  # type: ignore[method-assign]
    world.tick(1)
    assert not world.case.held and world.records.let_go == ["n1"]


def test_r6_the_whole_pipeline_hears_it_from_the_scheduler(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    case = Case(
        id="c9", incident="i9", fingerprint="f", fault_class="gpu_lost", node="n0", target="n0/gpu:GPU-1",
        cause="it broke", playbook="move_and_reboot", opened_ns=1, held=True, hold="c9-2-0-hold",
        held_ns=rig.fleet.now_ns, outcome="handed_over", ended_ns=rig.fleet.now_ns,
    )  # fmt: skip
    rig.repair.desk.kept.cases[case.id] = case
    undrained = "n1"
    rig.repair.scheduler = lambda: SchedulerView(
        at_ns=rig.fleet.now_ns, jobs={},
        adds=lambda state: replace(state, hold="none" if state.node == undrained else "ours"),
    )  # fmt: skip
    for _ in range(65):
        rig.fleet.now_ns += 1_000_000_000
        rig.tick()
    assert case.held, "another node's drain is gone"
    undrained = "n0"
    for _ in range(65):
        rig.fleet.now_ns += 1_000_000_000
        rig.tick()
    assert not case.held and rig.records.let_go == ["n0"]
