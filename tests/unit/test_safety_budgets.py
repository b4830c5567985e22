"""Budgets of the safety kernel at their bounds, and the floor: one true fault is repaired to its end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from unit.safety_world import (
    DAY,
    DRIVER,
    HOUR,
    JOB,
    MINUTE,
    NOW,
    ask,
    changed,
    detail,
    fleet,
    held,
    judge,
    node,
    past,
    state,
    with_job,
)

from gpuvigil_collector.action import Limits, Past

WIDE = Limits(
    jobs_an_hour=99, gpus_share_an_hour=1.0, unavailable_share=1.0, unavailable_max=99, domain_pause_s=0
)


def after(of, *done, **limits):
    """The same state after actions, with other limits where they are given."""
    return replace(of, past=tuple(done), limits=replace(of.limits, **limits))


def ended(job="j9", ago=MINUTE, name="n5", kind="move_job", gpus=8, **fields):
    """A past action that ended a running job."""
    return past(kind, name, ago, job=job, jobs=(job,), gpus=gpus, **fields)


def test_one_running_job_an_hour():
    assert judge(after(with_job(), ended()), ask("move_job")).gate == "budgets"
    assert judge(after(with_job(), ended(ago=HOUR - 1)), ask("move_job")).gate == "budgets"
    assert judge(after(with_job(), ended(ago=HOUR)), ask("move_job")).allowed
    assert judge(after(with_job(dead=True), ended()), ask("move_job")).allowed
    two = after(with_job(size=200), ended(), jobs_an_hour=2)
    assert judge(two, ask("move_job")).allowed
    assert judge(after(two, ended(), ended(name="n7"), jobs_an_hour=2), ask("move_job")).gate == "budgets"


def test_a_past_that_does_not_say_which_jobs_it_ended_counts_one():
    unsaid = past("reboot", "n5", MINUTE, jobs=None)
    assert judge(after(with_job(), unsaid), ask("move_job")).gate == "budgets"
    assert judge(after(with_job(), replace(unsaid, gpus=0)), ask("move_job")).allowed
    assert judge(after(with_job(), replace(unsaid, jobs=())), ask("move_job")).allowed
    assert judge(after(with_job(), ended(ago=MINUTE)), ask("hold")).allowed


def test_gpus_an_hour_with_one_nodes_worth_as_the_floor():
    big = after(with_job(size=200), ended(gpus=8), jobs_an_hour=9)  # 1 % of 1,600 GPUs: two nodes
    assert judge(big, ask("move_job")).allowed
    assert judge(after(big, ended(gpus=9), jobs_an_hour=9), ask("move_job")).gate == "budgets"
    small = after(with_job(size=20), ended(gpus=1), jobs_an_hour=9)
    assert "GPUs this hour 1 + 8 of 8" in detail(judge(small, ask("move_job")), "budgets")
    assert judge(small, ask("move_job")).gate == "budgets"


def test_a_first_job_beyond_the_hours_share_is_a_persons_to_allow():
    wide = with_job(on=("n0", "n1"))
    verdict = judge(wide, ask("move_job", gpus=16))
    assert verdict.allowed and verdict.needs_approval and verdict.effect == "recommend"
    assert judge(wide, ask("move_job", gpus=16, approved_by="ann")).effect == "act"
    assert (
        judge(after(wide, ended(gpus=1), jobs_an_hour=9), ask("move_job", gpus=16, approved_by="ann")).gate
        == "budgets"
    )


@pytest.mark.parametrize(("gpus", "asks"), [(64, False), (65, True)])
def test_a_job_above_64_gpus_only_with_approval_unless_dead(gpus, asks):
    names = tuple(f"n{i}" for i in range(9))
    of = after(with_job(on=names, gpus=gpus, size=1000))  # 1 % is 80 GPUs
    assert judge(of, ask("move_job", gpus=gpus)).needs_approval is asks
    assert not judge(of, ask("move_job", gpus=gpus, approved_by="ann")).needs_approval
    assert judge(with_job(on=names, gpus=gpus, size=1000, dead=True), ask("move_job")).effect == "act"


def test_a_job_is_stopped_once_an_hour_and_three_times_a_day():
    wide = replace(with_job(size=200), limits=replace(WIDE, node_attempts_a_day=99))
    mine = [ended("j1", ago=ago, name="n5") for ago in (2 * HOUR, 5 * HOUR, 9 * HOUR)]
    assert judge(replace(wide, past=tuple(mine[:2])), ask("move_job")).allowed
    assert judge(replace(wide, past=tuple(mine)), ask("move_job")).gate == "budgets"
    assert judge(replace(wide, past=(*mine[:2], ended("j1", ago=DAY))), ask("move_job")).allowed
    assert judge(replace(wide, past=(ended("j1", ago=HOUR - 1),)), ask("move_job")).gate == "budgets"
    assert judge(replace(wide, past=(ended("j1", ago=HOUR),)), ask("move_job")).allowed
    rebooted = past("reboot", "n5", MINUTE, jobs=("j1",))
    assert judge(replace(wide, past=(rebooted,)), ask("move_job")).gate == "budgets"
    assert judge(held(replace(wide, past=(ended("j1"),)), "n0"), ask("reboot")).gate == "budgets"


def test_one_cases_own_stops_of_a_running_job_are_counted_each():
    wide = replace(with_job(size=200), limits=replace(WIDE, node_attempts_a_day=99))
    own = [
        ended("j1", ago=ago, name="n0", kind=kind, case="case-1")
        for ago, kind in [(2 * HOUR, "stop_job"), (4 * HOUR, "move_job"), (6 * HOUR, "stop_job")]
    ]
    assert judge(replace(wide, past=tuple(own)), ask("move_job")).gate == "budgets"


def test_a_job_that_dies_at_each_start_is_parked():
    dead = replace(with_job(dead=True), limits=replace(WIDE, node_attempts_a_day=99))
    starts = [past("move_job", "n5", ago, job="j1", gpus=0) for ago in (1, 2, 3)]
    assert judge(replace(dead, past=tuple(starts[:2])), ask("move_job", evidence=(JOB,))).allowed
    assert judge(replace(dead, past=tuple(starts)), ask("move_job", evidence=(JOB,))).gate == "budgets"


@pytest.mark.parametrize(
    ("size", "most"), [(2, 1), (20, 1), (39, 1), (40, 2), (100, 5), (140, 7), (200, 10), (1000, 10)]
)
def test_nodes_held_are_at_most_five_percent_and_ten(size, most):
    of = held(state(fleet(size)), *(f"n{i}" for i in range(1, most)))
    assert judge(of, ask()).allowed
    assert judge(held(of, f"n{most}"), ask()).gate == "budgets"
    recorded = past("hold", f"n{most}", 2 * DAY, open=True)
    assert judge(after(of, recorded), ask()).gate == "budgets"
    assert judge(after(of, replace(recorded, open=False)), ask()).allowed


def test_nodes_held_are_counted_for_each_partition_too():
    nodes = fleet(100) | {f"n{i}": node(f"n{i}", partition="small", domain=f"d{i}") for i in range(10)}
    assert judge(held(state(nodes), "n50"), ask()).allowed
    verdict = judge(held(state(nodes), "n1"), ask())
    assert verdict.gate == "budgets" and "in its partition 1 + 1 of 1" in detail(verdict, "budgets")


def test_a_node_that_left_the_inventory_is_held_still():
    gone = past("hold", "n500", 2 * DAY, open=True)
    assert judge(after(state(), gone), ask()).gate == "budgets"


@pytest.mark.parametrize("kind", ["hold", "reset_gpu", "reboot"])
def test_one_node_of_a_domain_in_half_an_hour(kind):
    of = state() if kind == "hold" else held(state(), "n0")
    done = past(kind, "n1", 30 * MINUTE - 1)
    assert judge(after(of, done), ask(kind)).gate == "budgets"
    assert judge(after(of, replace(done, at_ns=NOW - 30 * MINUTE)), ask(kind)).allowed
    assert judge(after(of, replace(done, kind="move_job", gpus=0)), ask(kind)).allowed
    assert judge(after(of, past(kind, "n2", MINUTE)), ask(kind)).allowed
    assert judge(after(of, past(kind, "n2", MINUTE, domain="rack0")), ask(kind)).gate == "budgets"


def test_the_steps_of_a_case_are_one_use_of_its_domain_even_with_another_between():
    mine = past("hold", "n0", 35 * MINUTE, case="case-1", open=True)
    other = past("hold", "n1", 2 * MINUTE)
    of = held(state(), "n0")
    assert judge(after(of, mine, other), ask("reboot")).allowed
    assert judge(after(of, replace(mine, case="case-2"), other), ask("reboot")).gate == "budgets"
    assert judge(after(of, replace(mine, case=""), other), ask("reboot")).gate == "budgets"


def test_attempts_at_a_node_are_three_a_day():
    cases = [past("hold", "n0", ago * HOUR, case=f"c{ago}") for ago in (2, 5, 9)]
    steps = [past(kind, "n0", 2 * HOUR, case="c2", gpus=0) for kind in ("move_job", "reset_gpu", "reboot")]
    of = held(state(), "n0")
    assert judge(after(of, *cases[:2], *steps), ask("reboot")).allowed
    assert judge(after(of, *cases, *steps), ask("reboot")).gate == "budgets"
    assert judge(after(of, *cases[:2], replace(cases[2], at_ns=NOW - DAY)), ask("reboot")).allowed
    repeated = [past("reboot", "n0", ago * HOUR, case="case-1") for ago in (2, 5, 9)]
    assert judge(after(of, *repeated[:2]), ask("reboot")).allowed
    assert judge(after(of, *repeated), ask("reboot")).gate == "budgets"
    assert judge(after(of, *(replace(each, case="") for each in repeated)), ask("reboot")).gate == "budgets"


def test_an_id_is_used_once():
    used = past("hold", "n9", 20 * HOUR, id="hold-1")
    assert judge(after(state(), used), ask()).gate == "budgets"
    for kind in ("checkpoint", "validate", "release", "move_job"):
        of = after(held(with_job(dead=kind == "validate"), "n0"), replace(used, id=f"{kind}-1"))
        assert judge(of, ask(kind)).gate == "budgets"
        assert judge(replace(of, past=None), ask(kind)).gate == "budgets"


def test_a_proposal_that_hides_what_it_interrupts_is_refused():
    assert judge(with_job(), ask("move_job", gpus=7)).gate == "budgets"
    assert judge(with_job(dead=True), ask("move_job", gpus=0)).allowed
    assert judge(state(), ask(gpus=161)).gate == "budgets"


def test_release_and_validate_need_no_budget():
    spent = [ended(), past("hold", "n1", MINUTE), *(past("hold", "n0", i, case=f"c{i}") for i in range(1, 9))]
    for kind in ("release", "validate"):
        assert judge(after(held(state(), "n0", "n1", "n2"), *spent), ask(kind, evidence=())).allowed
        assert judge(replace(held(state(), "n0"), past=None), ask(kind)).gate == "budgets"


STEPS = ("checkpoint", "hold", "move_job", "reset_gpu", "reboot", "validate", "release")


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("size", [2, 3, 6, 10, 100])
@pytest.mark.parametrize("topology", [True, False])
def test_r1_liveness_one_true_fatal_fault_is_repaired_to_the_end(size, dead, topology):
    nodes = fleet(size) if topology else fleet(size, domain="", partition="")
    nodes |= {"n0": replace(nodes["n0"], jobs=("j1",))}
    of = replace(with_job(checkpoint="none", dead=dead), nodes=nodes, actionable=(("n0", NOW - MINUTE),))
    of, now, done = replace(of, actionable=(("n0", NOW),)), NOW, []
    for step, kind in enumerate(STEPS):
        now += 30_000_000_000
        of = replace(of, past=tuple(done), fence=replace(of.fence, until_ns=now + 29_000_000_000))
        verdict = judge(of, ask(kind, id=f"a{step}", gpus=8), now)
        assert verdict.allowed and verdict.effect == "act", (kind, [g for g in verdict.gates if not g.passed])
        here = of.nodes["n0"]
        done.append(
            Past(
                id=f"a{step}",
                kind=kind,
                node="n0",
                domain=here.domain,
                partition=here.partition,
                at_ns=now,
                job="",
                gpus=8,
                case="case-1",
                jobs=verdict.interrupts,
                open=kind == "hold",
            )
        )
        if kind == "checkpoint":
            of = replace(of, jobs={"j1": replace(of.jobs["j1"], checkpoint="saved")})
        if kind == "hold":
            of = held(of, "n0")
        if kind == "move_job":
            of = replace(changed(of, "n0", jobs=()), jobs={"j1": replace(of.jobs["j1"], nodes=("n1",))})
            of = changed(of, "n1", jobs=("j1",))


def test_r1_liveness_of_a_contained_error_is_two_origins():
    assert judge(with_job(), ask("hold", evidence=(DRIVER, JOB))).effect == "act"
