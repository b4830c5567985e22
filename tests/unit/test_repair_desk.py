"""Cases taken step by step: in order, once, through the kernel, to an end that says what became of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from unit.repair_world import CLEAN_S, SECOND, Memory, World

from gpuvigil_collector.repair.walk import Word


def test_r12_a_lost_gpu_is_saved_held_moved_rebooted_proven_and_returned() -> None:
    world = World()
    world.fault("gpu_lost")
    world.tick(8)
    assert world.saves.asked == ["j1"]
    assert world.kinds == ["hold", "move_job", "reboot", "validate"]
    assert [target for _, target in world.effects.asked] == ["n1", "j1", "n1", "n1"]
    world.open.clear()
    world.tick(int(CLEAN_S) - 5)
    assert "release" not in world.kinds
    world.tick(10)
    assert world.kinds[-1] == "release"
    assert (world.case.outcome, world.case.held) == ("returned", False)
    assert [mark.what for mark in world.case.trail if mark.step == "checkpoint"] == ["j1: saved"]


def test_a_reboot_waits_until_no_job_runs_there() -> None:
    world = World()
    world.fault("row_remap_pending")
    world.tick(100)
    assert world.kinds == ["hold"]
    assert "1 job on n1: j1" in world.case.waits
    world.end_job()
    world.tick(3)
    assert world.effects.asked[1] == ("reset_gpu", "GPU-1")


def test_a_denial_is_told_once_and_asked_again_until_it_is_allowed() -> None:
    world = World()
    world.denies = "budgets"
    world.fault("gpu_lost")
    world.tick(30)
    assert world.effects.asked == [] and world.saves.asked == []
    assert [what for what, _ in world.told].count("action_denied") == 1
    assert world.case.waits == "budgets: as the test says"
    world.denies = ""
    world.tick(8)
    assert world.kinds[0] == "hold"


def test_what_is_denied_for_too_long_goes_to_a_person() -> None:
    world = World()
    world.denies = "storm"
    world.fault("gpu_lost")
    world.tick(200, seconds=60)
    assert world.case.outcome == "handed_over"
    assert world.effects.asked == []


def test_r9_observe_has_no_effect_and_says_what_it_would_have_done() -> None:
    world = World()
    world.mode = "observe"
    world.fault("gpu_lost")
    world.tick(60)
    assert world.effects.asked == [] and world.saves.asked == []
    assert world.case.outcome == "observed"
    would = [action.proposal.kind for action in world.desk.hands.actions.values() if action.state == "would"]
    assert would == ["checkpoint", "hold"]


def test_a_person_says_no() -> None:
    world = World()
    world.mode = "recommend"
    world.fault("gpu_lost")
    world.tick(10)
    name = world.case.action
    world.desk.ask(lambda desk, now: desk.hands.reject(name, "eve", "we drain it ourselves", now))
    world.tick(2)
    assert (world.case.outcome, world.effects.asked) == ("rejected", [])
    again = world.desk.ask(lambda desk, now: desk.hands.approve(name, "eve", now))
    world.tick()
    with pytest.raises(KeyError):
        again.result(0)


def test_an_approval_is_judged_again_and_expires() -> None:
    world = World()
    world.mode = "recommend"
    world.fault("gpu_lost")
    world.tick(10)
    name, world.denies = world.case.action, "pause"
    answer = world.desk.ask(lambda desk, now: desk.hands.approve(name, "eve", now))
    world.tick()
    with pytest.raises(PermissionError, match="pause"):
        answer.result(0)
    world.denies = ""
    world.tick(65, seconds=60)
    assert world.case.ended and world.effects.asked == []


def test_a_job_that_cannot_save_does_not_stop_the_rest() -> None:
    world = World()
    world.saves.word = Word("failed", "it makes no step")
    world.fault("gpu_lost")
    world.tick(8)
    assert world.case.jobs == {"j1": "impossible"}
    assert world.kinds[:2] == ["hold", "move_job"]


def test_a_hold_that_fails_three_times_goes_to_a_person() -> None:
    world = World()
    world.effects.fails["hold"] = "slurmctld says no"
    world.fault("gpu_lost")
    world.tick(60)
    assert world.kinds == ["hold"] * 3
    assert world.case.outcome == "handed_over"
    assert "slurmctld says no" in world.case.trail[-1].what
    assert (
        len({action.proposal.id for action in world.desk.hands.actions.values()}) == 4
    )  # and the checkpoint


def test_a_fault_that_goes_before_anything_was_done_is_let_go() -> None:
    world = World()
    world.denies = "budgets"
    world.fault("gpu_lost")
    world.tick(3)
    world.open.clear()
    world.tick(2)
    assert (world.case.outcome, world.effects.asked) == ("cleared", [])


def test_a_reset_that_fails_leads_to_a_reboot() -> None:
    world = World()
    world.effects.fails["reset_gpu"] = "in use"
    world.fault("ecc_uncorrectable")
    world.tick(40)
    assert world.kinds.count("reset_gpu") == 3
    assert world.kinds[-2:] == ["reboot", "validate"]
    assert world.case.playbook == "reboot_and_validate"


def test_r12_trouble_in_the_clean_wait_keeps_the_node_out() -> None:
    world = World()
    world.fault("gpu_lost")
    world.tick(8)
    world.open.clear()
    world.tick(5)
    world.fault("ecc_uncorrectable", identity="i2")
    world.tick(5)
    first = world.desk.kept.cases[next(iter(world.desk.kept.cases))]
    assert first.outcome == "handed_over" and first.held
    assert "ecc_uncorrectable" in first.trail[-1].what


def treat_once(world: World, identity: str) -> float:
    """Break the node, let it be mended, and return how long its clean wait was, in seconds."""
    world.jobs = {"j1": replace(world.jobs["j1"], nodes=("n1", "n2"))}
    world.fault("gpu_lost", identity=identity)
    world.tick(8)
    world.open.clear()
    wait = (world.case.clean_until_ns - world.now_ns) / SECOND
    world.tick(400, seconds=10)
    return wait


def test_r12_a_relapse_doubles_the_clean_wait_and_the_third_time_is_for_a_person() -> None:
    world = World()
    first = treat_once(world, "i1")
    assert world.case.outcome == "returned"
    second = treat_once(world, "i2")
    assert world.case.outcome == "returned"
    assert first == pytest.approx(CLEAN_S, abs=10) and second == pytest.approx(2 * CLEAN_S, abs=10)
    treat_once(world, "i3")
    assert (world.case.outcome, world.case.held) == ("handed_over", True)
    assert "three times in seven days" in world.case.trail[-1].what


def test_r3_a_restart_in_the_middle_does_nothing_twice() -> None:
    world = World()
    world.effects.silent.add("reboot")
    world.fault("gpu_lost")
    world.tick(8)
    assert world.kinds == ["hold", "move_job", "reboot"]
    after = World(world.records)
    after.now_ns, after.open = world.now_ns, world.open
    after.tick(60)
    assert after.effects.asked == []  # the reboot is under way: only the executor may tell its end
    (reboot,) = [action for action in after.desk.hands.actions.values() if action.proposal.kind == "reboot"]
    after.effects.ends(replace(reboot, state="done", outcome="new boot id"))
    after.tick(3)
    assert after.kinds == ["validate"]


def test_r5_an_action_whose_record_is_lost_is_not_begun_anew() -> None:
    world = World()
    world.effects.silent.add("reboot")
    world.fault("gpu_lost")
    world.tick(8)
    world.records.kept.clear()
    after = World(world.records)
    after.now_ns, after.open = world.now_ns, world.open
    after.tick(10)
    assert (after.case.outcome, after.effects.asked) == ("handed_over", [])
    assert "is lost" in after.case.trail[-1].what


def test_unreadable_marks_deny_everything() -> None:
    records = Memory()
    records.rows["marks"] = "{"
    world = World(records)
    assert world.desk.kept.marks is None


def test_one_case_a_node_and_the_next_when_it_has_ended() -> None:
    world = World()
    world.fault("gpu_lost")
    world.fault("thermal", identity="i2")
    world.tick(3)
    assert [case.fault_class for case in world.desk.kept.cases.values()] == ["gpu_lost"]


def test_what_nothing_here_can_do_goes_to_a_person() -> None:
    world = World(kinds=frozenset())
    world.fault("gpu_lost")
    world.tick(20)
    assert world.case.outcome == "handed_over"
    assert "nothing is configured here that can hold" in world.case.trail[-1].what


def test_while_nobody_knows_what_runs_no_step_for_a_job_is_left_out() -> None:
    world = World()
    world.fault("gpu_lost")
    world.blind = True
    world.tick(30)
    assert (world.kinds, world.saves.asked) == ([], [])
    assert world.case.waits == "what runs on n1 is not known"
    world.blind = False
    world.tick(8)
    assert world.saves.asked == ["j1"]
    assert world.kinds == ["hold", "move_job", "reboot", "validate"]


def test_the_record_of_a_checkpoint_ends_with_the_jobs_answer() -> None:
    for word, state in ((Word("done", "step 40"), "done"), (Word("failed", "no space"), "failed")):
        world = World()
        world.saves.word = word
        world.fault("gpu_lost")
        world.tick(8)
        [action] = [one for one in world.records.kept.values() if one.proposal.kind == "checkpoint"]
        assert (action.state, action.outcome) == (state, word.why)


def test_rules_hear_once_of_a_test_that_passed_and_again_after_a_restart() -> None:
    world = World()
    world.fault("gpu_lost")
    began_ns = world.now_ns
    world.tick(8)
    assert world.kinds[-1] == "validate"
    [event] = world.desk.take_drills()
    assert (event.node, event.kind, event.synthetic) == ("n1", "proven", False)
    assert began_ns < event.time_ns <= world.now_ns
    world.tick(8)
    assert world.desk.take_drills() == ()
    again = World(world.records)
    assert [one.time_ns for one in again.desk.take_drills()] == [event.time_ns]
