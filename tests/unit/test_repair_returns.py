"""R8 and R12 at the desk: what a job's end waits for, and what a node's return waits for."""

from __future__ import annotations

from unit.repair_world import SECOND, World

from gpuvigil_collector.repair import words
from gpuvigil_collector.repair.walk import Word


def test_r8_a_job_is_not_ended_before_its_checkpoint_is_confirmed_or_impossible() -> None:
    """However long the save takes, and whatever it says in between: first the word, then the move."""
    world = World()
    world.saves.word = Word("waits", "3 of 16 ranks have saved")
    world.fault("gpu_lost")
    world.tick(60)
    assert world.saves.asked == ["j1"] and not {"move_job", "stop_job", "reboot"} & set(world.kinds)
    world.saves.word = Word("done", "step 40")
    world.tick(8)
    assert world.case.jobs == {"j1": "saved"} and world.effects.asked[1] == ("move_job", "j1")


def test_r8_a_save_that_hangs_is_given_up_after_its_time_and_said_to_be() -> None:
    world = World()
    world.saves.word = Word("waits", "no rank has answered")
    world.fault("gpu_lost")
    world.tick(120, seconds=60)
    assert world.case.jobs == {"j1": "impossible"}
    [said] = [mark.what for mark in world.case.trail if mark.step == "checkpoint"]
    assert said == "failed: not done within 600 s: no rank has answered"
    assert world.kinds[:2] == ["hold", "move_job"], "and only then it is moved"


def test_r12_a_node_that_is_well_without_load_is_not_returned() -> None:
    """The fault has gone and all is quiet for a day: without the test under load it stays out."""
    world = World()
    world.effects.silent.add("validate")
    world.fault("gpu_lost")
    world.tick(8)
    assert world.kinds[-1] == "validate"
    world.open.clear()
    world.tick(1440, seconds=60)
    assert "release" not in world.kinds and world.case.held


def test_r12_a_node_that_fails_its_test_under_load_goes_to_a_person() -> None:
    world = World()
    world.effects.fails["validate"] = "bandwidth 40 % of its model's"
    world.fault("gpu_lost")
    world.tick(8)
    world.open.clear()
    world.tick(200, seconds=60)
    assert (world.case.outcome, world.case.held) == ("handed_over", True) and "release" not in world.kinds


def test_r3_a_test_that_was_never_begun_is_asked_for_again() -> None:
    """As after a collector that was killed between its intent and the node's answer."""
    world = World()
    world.effects.lost["validate"] = "never begun: the collector stopped before it"
    world.fault("gpu_lost")
    world.tick(8)
    world.open.clear()
    world.tick(200, seconds=60)
    assert world.kinds.count("validate") == 2 and world.case.outcome == "returned"


def test_r12_a_restart_in_the_clean_wait_shortens_nothing() -> None:
    world = World()
    world.fault("gpu_lost")
    world.tick(8)
    world.open.clear()
    world.tick(5)
    until_ns = world.case.clean_until_ns
    after = World(world.records)
    after.now_ns = world.now_ns
    after.tick(int((until_ns - world.now_ns) / SECOND) - 5)
    assert "release" not in after.kinds
    after.tick(15)
    assert after.kinds == ["release"] and after.case.outcome == "returned"


def test_r12_a_person_may_return_a_node_as_often_as_it_takes() -> None:
    """Each `gpuvigil return` is a test of its own: what an earlier one said answers for nothing."""
    world = World()
    world.effects.fails["validate"] = "bandwidth 40 % of its model's"
    world.fault("gpu_lost")
    world.tick(8)
    world.open.clear()
    world.tick(200, seconds=60)
    for asked in (1, 2):
        tests = world.kinds.count("validate")
        words.give_back("n1", "ada")(world.desk, world.now_ns)
        world.tick(200, seconds=60)
        assert world.kinds.count("validate") == tests + 1, f"return {asked} is tested anew"
        assert (world.case.outcome, world.case.held) == ("handed_over", True)
    world.effects.fails.clear()
    words.give_back("n1", "ada")(world.desk, world.now_ns)
    world.tick(200, seconds=60)
    assert (world.case.outcome, world.kinds[-1]) == ("returned", "release")
    kept = [one for one in world.records.kept.values() if one.proposal.kind != "checkpoint"]
    assert len(kept) == len(world.effects.asked), "no id stands for two actions"


def test_r3_a_collector_that_was_away_gives_no_step_up_that_it_never_tried() -> None:
    """Down for an hour just before a step: the step's own time begins when it is first tried."""
    world = World()
    world.fault("gpu_lost")
    world.tick(1, seconds=3600)
    while world.case.step == 0:
        world.tick(1, seconds=3600)
    after = World(world.records)
    after.now_ns, after.open = world.now_ns, world.open
    after.tick(1, seconds=3600)
    after.tick(60)
    assert after.case.outcome == "" and "reboot" in after.kinds, after.case.trail
