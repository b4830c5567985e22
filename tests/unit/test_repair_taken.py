"""A person takes our hold away: their word stands, no budget counts the node, nothing is repeated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from unit.brain_help import Rig
from unit.repair_world import World

from gpuvigil_collector.repair.case import Case
from gpuvigil_collector.repair.fleet import SchedulerView
from gpuvigil_collector.repair.settings import Remediation
from gpuvigil_collector.repair.stage import RepairView


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
    assert world.records.let_go == [world.case.hold], "once, on disk: its budget is free"
    assert ("hold_taken_away", "n1") in world.told
    world.tick(300)
    assert world.effects.asked == asked and world.records.let_go == [world.case.hold]


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
    assert not world.case.held and world.records.let_go == [world.case.hold]


def test_r6_the_whole_pipeline_hears_it_from_the_scheduler(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    case = held_case(held_ns=rig.fleet.now_ns, outcome="handed_over", ended_ns=rig.fleet.now_ns)
    rig.repair.desk.kept.cases[case.id] = case
    undrained = "n1"  # another node's drain goes
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
    assert not case.held and rig.records.let_go == ["c9-2-0-hold"]


def test_r6_a_person_who_acts_rather_than_approves_is_heard() -> None:
    """The reboot waits for approval, and the operator undrains the node by hand."""
    world = World()
    world.scheduler = True
    world.fault("gpu_lost")
    world.tick()
    while not world.case.held:
        world.tick()
    world.mode = "recommend"
    world.tick(10)
    waiting = world.case.action
    assert world.desk.hands.actions[waiting].state == "awaiting"
    world.undrained.add("n1")
    world.tick(70)
    assert (world.case.outcome, world.case.held) == ("handed_over", False)
    assert world.desk.hands.actions[waiting].state == "expired", "nobody approves it any more"


def test_a_hold_that_the_scheduler_never_called_ours_cannot_be_seen_to_go() -> None:
    """A site's own tool drained the node with a Reason of its own."""
    world = World()
    world.scheduler = True
    world.undrained.add("n1")
    world.fault("gpu_lost")
    world.effects.silent.add("validate")
    world.tick(120)
    assert world.case.held and not world.case.ended and world.records.let_go == []


def held_case(**more: object) -> Case:
    given = {
        "id": "c9", "incident": "i9", "fingerprint": "f", "fault_class": "gpu_lost", "node": "n0",
        "target": "n0/gpu:GPU-1", "cause": "it broke", "playbook": "p", "opened_ns": 1, "held": True,
        "hold": "c9-2-0-hold", "partition": "a",
    }  # fmt: skip
    return Case(**(given | more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "modes", "refuses"),
    [
        ({}, {}, [True]),
        ({}, {"a": "recommend"}, [False]),
        ({}, {"b": "observe"}, [True]),
        ({"action": "c9-6-0-release"}, {}, []),
        ({"action": "c9-5-0-validate"}, {}, [True]),
        ({"held": False}, {}, []),
        ({"hold": ""}, {}, []),
        ({"synthetic": True}, {}, []),
    ],
)
def test_which_nodes_are_kept_out_of_work_by_their_own_scripts(
    more: dict[str, object], modes: dict[str, Any], refuses: list[bool], tmp_path: Path
) -> None:
    rig = Rig(tmp_path, remediation=Remediation(mode="act", partition_modes=modes))
    rig.tick()
    rig.repair.view = RepairView(cases=(held_case(**more),))
    held = rig.repair.held()
    assert [one.refuses for one in held] == refuses
    assert all((one.node, one.action, one.reachable) == ("n0", "c9-2-0-hold", True) for one in held)
    assert all(one.reason == "gpuvigil: gpu_lost [i9]" for one in held)


def test_a_case_that_was_written_before_steps_were_counted_has_ids_that_were_never_used() -> None:
    old = msgspec.to_builtins(held_case(step=3, playbook="return_node"))
    del old["taken"]
    read = msgspec.convert(old, Case)
    assert read.action_id("validate") not in {f"c9-{step}-0-validate" for step in range(100)}
    again = msgspec.json.decode(msgspec.json.encode(read), type=Case)
    assert again.action_id("validate") == read.action_id("validate")
