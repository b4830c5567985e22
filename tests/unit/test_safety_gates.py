"""The safety kernel gate by gate: what each lets through, what it denies, and the numbers that it gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
from unit.safety_world import (
    FABRIC,
    FATAL,
    FENCE,
    HOST,
    JOB,
    NOW,
    PEERS,
    SECOND,
    STATISTICS,
    ask,
    changed,
    detail,
    held,
    judge,
    state,
    with_job,
)

from gpuvigil_collector.action import HARMLESS, JobState, Limits
from gpuvigil_collector.safety import GATES

ALL = ("checkpoint", "hold", "stop_job", "move_job", "reset_gpu", "reboot", "validate", "release")
ORDER = [
    "mode",
    "pause",
    "maintenance",
    "target",
    "ownership",
    "evidence",
    "budgets",
    "storm breaker",
    "blind spot",
    "workload",
    "fencing",
]


def ready(kind):
    """A state in which a kind on n0 is allowed."""
    of = state() if kind == "validate" else with_job()
    return held(of, "n0") if kind in ("reset_gpu", "reboot", "validate", "release") else of


@pytest.mark.parametrize("kind", ALL)
def test_every_kind_is_possible_and_acts(kind):
    verdict = judge(ready(kind), ask(kind))
    assert verdict.allowed and verdict.effect == "act", verdict.gates


def test_gates_come_in_the_order_of_the_design():
    assert [gate.name for gate in judge(state(), ask()).gates] == ORDER == [name for name, _, _ in GATES]


def test_the_first_gate_that_denies_names_it_and_all_are_told():
    verdict = judge(replace(state(), paused="ann: upgrade", fence=None), ask("hold", "n0", evidence=()))
    assert verdict.gate == "pause" and [g.name for g in verdict.gates if not g.passed] == [
        "pause",
        "evidence",
        "fencing",
    ]
    [pause] = [gate for gate in verdict.gates if gate.name == "pause"]
    assert not pause.passed and pause.detail == "paused: 'ann: upgrade'" and len(verdict.gates) == 11


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    ("gate", "fields"),
    [
        ("mode", {"mode": None}),
        ("mode", {"mode": "Act"}),
        ("mode", {"partition_modes": {"x": "acting"}}),
        ("pause", {"paused": None}),
        ("pause", {"paused": "by ann"}),
        ("fencing", {"fence": None}),
    ],
)
def test_what_stops_everything_stops_each_kind(kind, gate, fields):
    assert judge(replace(ready(kind), **fields), ask(kind)).gate == gate


@pytest.mark.parametrize("kind", ALL)
def test_maintenance_of_anyone_stops_each_kind(kind):
    verdict = judge(changed(ready(kind), "n0", maintenance="Slurm reservation maint_7"), ask(kind))
    assert verdict.gate == "maintenance" and "maint_7" in detail(verdict, "maintenance")


def test_a_job_is_not_moved_off_a_node_in_maintenance_by_way_of_another():
    of = changed(with_job(on=("n0", "n1")), "n1", maintenance="bob: swaps a NIC")
    assert judge(of, ask("move_job", gpus=16)).gate == "maintenance"
    assert judge(of, ask("hold")).allowed


@pytest.mark.parametrize("kind", ALL)
def test_r7_a_protected_node_is_never_touched(kind):
    assert judge(changed(ready(kind), "n0", protected="control plane"), ask(kind)).gate == "workload"


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind != "checkpoint"])
def test_r6_what_others_hold_or_repair_is_theirs(kind):
    assert judge(changed(ready(kind), "n0", hold="foreign", held_why="ann"), ask(kind)).gate == "ownership"
    assert judge(changed(ready(kind), "n0", remediator="draino"), ask(kind)).gate == "ownership"
    assert judge(replace(ready(kind), others="NVSentinel"), ask(kind)).gate == "ownership"


@pytest.mark.parametrize("kind", ["validate", "release", "reset_gpu", "reboot"])
def test_only_what_we_hold_is_reset_rebooted_validated_released(kind):
    assert judge(changed(ready(kind), "n0", hold="none"), ask(kind)).gate == "ownership"


@pytest.mark.parametrize("kind", sorted(HARMLESS))
def test_what_changes_nothing_needs_a_valid_target_alone(kind):
    bad = replace(
        state(), paused=None, past=None, fence=None, breaker_ns=1, actionable=None, jobs=None, others=None
    )
    assert judge(bad, ask(kind, evidence=())).effect == "act"
    assert judge(replace(bad, mode="recommend"), ask(kind, evidence=())).effect == "act"
    assert judge(replace(bad, mode="observe"), ask(kind, evidence=())).effect == "none"
    assert judge(replace(bad, mode=None), ask(kind, evidence=())).effect == "none"
    assert judge(bad, ask(kind, evidence=None)).effect == "none"
    assert judge(bad, ask(kind, "n99")).gate == "target"


@pytest.mark.parametrize(
    ("evidence", "enough"),
    [
        ((), False),
        ((FATAL,), True),
        ((replace(FATAL, fatal=False),), False),
        ((replace(HOST, fatal=True),), False),
        ((replace(STATISTICS, fatal=True),), False),
        ((replace(FATAL, fatal=False), replace(FATAL, fatal=False, rule="xid_48")), False),
        ((HOST, FABRIC), False),
        ((HOST, PEERS), True),
        ((JOB, PEERS), True),
        ((JOB, STATISTICS), False),
        ((JOB, replace(JOB, rule="process_dead")), False),
        ((HOST, STATISTICS), False),
    ],
)
@pytest.mark.parametrize("kind", ["hold", "reset_gpu", "reboot"])
def test_r14_evidence_is_one_fatal_fact_or_two_origins(kind, evidence, enough):
    assert judge(ready(kind), ask(kind, evidence=evidence)).gate == ("" if enough else "evidence")


@pytest.mark.parametrize("kind", ["hold", "stop_job", "move_job", "reset_gpu", "reboot"])
def test_r14_statistics_alone_never_drain_nor_interrupt(kind):
    many = tuple(
        replace(STATISTICS, rule=rule, fatal=True) for rule in ("forest", "forecast", "bank", "votes")
    )
    verdict = judge(ready(kind), ask(kind, evidence=many))
    assert verdict.gate == "evidence" and "origins 0 of 2" in detail(verdict, "evidence")
    assert judge(ready("checkpoint"), ask("checkpoint", evidence=many)).allowed


def test_r14_a_jobs_word_alone_moves_itself_and_nothing_else():
    for kind in ("stop_job", "move_job", "checkpoint"):
        assert judge(ready(kind), ask(kind, evidence=(JOB,))).allowed
        assert judge(ready(kind), ask(kind, evidence=(JOB, STATISTICS))).allowed
    for kind in ("hold", "reset_gpu", "reboot"):
        assert judge(ready(kind), ask(kind, evidence=(JOB,))).gate == "evidence"
    assert judge(ready("move_job"), ask("move_job", evidence=(PEERS,))).gate == "evidence"


@pytest.mark.parametrize("kind", ALL)
def test_drills_are_judged_and_have_no_effect(kind):
    drill = replace(FATAL, synthetic=True)
    verdict = judge(ready(kind), ask(kind, evidence=(drill,), synthetic=True, approved_by="ann"))
    assert verdict.allowed and verdict.effect == "none"
    assert judge(ready(kind), ask(kind, evidence=(drill,))).gate == "evidence"
    assert judge(ready(kind), ask(kind, synthetic=True)).gate == "evidence"
    assert judge(ready(kind), ask(kind, evidence=(FATAL, replace(HOST, synthetic=True)))).gate == "evidence"


def test_the_mode_and_an_approval_decide_the_effect():
    for mode, approved, effect in [
        ("observe", "ann", "none"),
        ("recommend", "", "recommend"),
        ("recommend", "ann", "act"),
        ("act", "", "act"),
    ]:
        assert judge(replace(state(), mode=mode), ask(approved_by=approved)).effect == effect
    here = replace(state(), partition_modes={"train": "observe"})
    assert judge(here, ask()).effect == "none"
    assert judge(replace(here, partition_modes={"train": "act"}, mode="observe"), ask()).effect == "act"


def test_a_job_in_two_partitions_is_moved_in_the_more_cautious_ones_mode():
    of = replace(
        changed(with_job(on=("n0", "n1")), "n1", partition="care"), partition_modes={"care": "observe"}
    )
    assert judge(of, ask("move_job", gpus=16, approved_by="ann")).effect == "none"


@pytest.mark.parametrize(
    ("left", "allowed"), [(15, False), (15.001, True), (30, True), (30.001, False), (-1, False)]
)
def test_more_than_half_the_lease_is_left_and_no_more_than_a_lease(left, allowed):
    fence = replace(FENCE, until_ns=NOW + round(left * SECOND))
    assert judge(replace(state(), fence=fence), ask()).gate == ("" if allowed else "fencing")


@pytest.mark.parametrize(
    "fields",
    [
        {"holder": ""},
        {"holder": None},
        {"generation": 0},
        {"generation": True},
        {"lease_s": 0},
        {"lease_s": float("nan")},
        {"until_ns": None},
        {"until_ns": float("inf")},
    ],
)
def test_a_malformed_fence_is_none(fields):
    assert judge(replace(state(), fence=replace(FENCE, **fields)), ask()).gate == "fencing"


@pytest.mark.parametrize("kind", ["stop_job", "move_job", "reset_gpu", "reboot"])
def test_r7_r8_what_runs_has_its_checkpoint_or_is_dead(kind):
    for word, gate in [("none", "workload"), ("pending", "workload"), ("saved", ""), ("impossible", "")]:
        of = with_job(checkpoint=word)
        assert judge(held(of, "n0"), ask(kind)).gate == gate
    assert judge(held(with_job(checkpoint="none", dead=True), "n0"), ask(kind)).allowed


@pytest.mark.parametrize("kind", ["stop_job", "move_job", "reset_gpu", "reboot"])
def test_r7_an_owners_refusal_is_kept(kind):
    verdict = judge(held(with_job(refusals=("no_requeue",)), "n0"), ask(kind))
    assert verdict.gate == "workload" and "no_requeue" in detail(verdict, "workload")
    dead = judge(held(with_job(refusals=("no_requeue",), dead=True), "n0"), ask(kind))
    assert dead.gate == ("workload" if kind in ("stop_job", "move_job") else "")


def two_jobs(**other):
    of = held(with_job(), "n0")
    second = JobState(job="j2", nodes=("n0",), gpus=0, **other)
    return replace(changed(of, "n0", jobs=("j1", "j2")), jobs=dict(of.jobs) | {"j2": second})


def test_r7_other_jobs_of_the_node_count():
    limits = Limits(jobs_an_hour=2)
    assert judge(replace(two_jobs(), limits=limits), ask("reboot")).gate == "workload"
    assert judge(replace(two_jobs(checkpoint="saved"), limits=limits), ask("reboot")).interrupts == (
        "j1",
        "j2",
    )
    assert judge(two_jobs(checkpoint="saved"), ask("reboot")).gate == "budgets"
    assert judge(two_jobs(), ask("move_job")).interrupts == ("j1",)


def test_r12_validation_waits_for_what_runs():
    assert judge(held(with_job(), "n0"), ask("validate")).gate == "workload"
    assert judge(held(with_job(dead=True), "n0"), ask("validate")).allowed
