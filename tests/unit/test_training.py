"""The training stage on a fake clock: jobs that run well are silent, those that do not are named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.fake_snapshot import SECOND, Fleet
from unit.training_job import FakeJob, running_job, told  # noqa: F401 - a fixture

from gpuvigil_detectors.base import StepRows
from gpuvigil_detectors.training.stage import Training


def test_a_job_that_runs_well_is_silent_for_long() -> None:
    job = FakeJob(seed=4)
    assert all(told(job.second()) == [] for _ in range(600))


def test_the_first_rank_that_died_is_named_and_the_restart_clears_it(job: FakeJob) -> None:
    job.down(2)
    [found] = job.run(1)
    assert (found.fault_class, found.entity, found.severity) == ("process_dead", "n1/rank:j/2", "critical")
    assert "rank 2 of job j died after step" in found.sentence and "3 of 4 ranks live" in found.sentence
    for rank in (0, 1, 3):
        job.down(rank, after_ns=2 * SECOND)
    [found] = job.run(3)
    assert found.entity == "n1/rank:j/2", "the others' end is its consequence"
    for rank in range(4):
        job.up(rank, restart=1)
    assert job.run(5) == []


def test_a_job_that_somebody_ended_alarms_nobody(job: FakeJob) -> None:
    for rank in range(4):
        job.down(rank, after_ns=rank * 50_000_000)
    [found] = job.run(1)
    assert (found.severity, found.notify) == ("info", False)
    assert job.run(70) == []


def test_ranks_that_exit_by_themselves_are_no_fault(job: FakeJob) -> None:
    for rank in range(4):
        job.down(rank, "exit")
    assert job.run(30) == []


@pytest.mark.parametrize(
    ("make", "kind", "culprit"),
    [
        (lambda job: job.held.update({3: "stopped"}), "stopped", "n1/rank:j/3"),
        (lambda job: (job.held.update({1: "host"}), job.phase.update({1: 2.0})), "host", "n0/rank:j/1"),
        (lambda job: job.held.update({1: "all alike"}), "unknown", "n0/job:j"),
    ],
)
def test_a_hang_is_suspected_in_time_and_its_culprit_named(job: FakeJob, make, kind, culprit) -> None:
    make(job)
    seconds = 0
    while not (found := job.second()):
        seconds += 1
        assert seconds < 60
    assert 14 <= seconds <= 17, "max(3 x p99 step, 15 s)"
    assert (found[0].fault_class, found[0].severity, found[0].entity) == ("hang", "warning", culprit)
    assert dict(found[0].evidence.facts)["kind"] == kind
    [found] = job.run(5)
    assert found.severity == ("warning" if kind == "unknown" else "critical")
    job.held.clear()
    assert job.run(3) == []


@pytest.mark.parametrize("phase", [5, 6, 7, 8])
def test_what_may_take_long_is_no_hang(job: FakeJob, phase: int) -> None:
    job.held[0] = "save"
    job.phase = dict.fromkeys(range(4), float(phase))
    assert job.run(300) == []


def test_a_job_in_its_first_steps_is_not_judged() -> None:
    job = FakeJob(seconds=1.0)
    job.run(10)
    job.held[0] = "compiling"
    assert job.run(120) == []


def test_a_slowdown_of_ten_percent_is_confirmed_within_seven_steps_and_clears(job: FakeJob) -> None:
    job.extra[:] = 0.10
    before = job.step
    while not (found := told(job.second())):
        assert job.step < before + 30
    assert job.step - before <= 8
    assert (found[0].fault_class, found[0].entity) == ("fail_slow", "n0/job:j")
    assert "no single rank is late" in found[0].sentence
    job.extra[:] = 0
    job.run(6)
    assert job.run(2) == []


def test_a_late_rank_is_named(job: FakeJob) -> None:
    job.extra[2] = 0.15
    found = job.run(8)
    assert [(f.fault_class, f.entity) for f in found] == [("straggler", "n1/rank:j/2")]
    assert dict(found[0].evidence.facts)["gpu"] == "GPU-n1-0"


def test_a_crowded_network_is_recorded_and_told_only_when_it_lasts(job: FakeJob) -> None:
    job.between = 0.4
    for _ in range(500):
        assert told(job.second()) == []
    [found] = job.run(1)
    assert (found.fault_class, found.entity, found.severity) == ("congestion", "n0/job:j", "info")
    assert "the exchange between its ranks takes " in found.sentence and "no node" in found.sentence
    job.run(130)
    [found] = told(job.second())
    assert (found.fault_class, found.severity) == ("congestion", "warning")
    job.between = 0.0
    job.run(6)
    assert job.run(2) == []


def test_a_slow_rank_beside_a_crowded_network_is_named_all_the_same(job: FakeJob) -> None:
    job.between = 0.1
    job.extra[2] = 0.15
    found = told(job.run(8))
    assert [(f.fault_class, f.entity) for f in found] == [("straggler", "n1/rank:j/2")]


def test_work_that_moves_from_rank_to_rank_blames_no_machine(job: FakeJob) -> None:
    heard = []
    for second in range(24):
        job.extra[:] = 0
        job.extra[second * 3 % 4] = 0.3
        heard += told(job.second())
    assert {(f.fault_class, f.entity) for f in heard} == {("workload_imbalance", "n0/job:j")}


def test_one_of_many_noisy_ranks_that_is_a_little_late_is_not_taken_for_moving_work() -> None:
    job = FakeJob(ranks=48)
    own = job.own.copy()
    for second in range(70):
        job.own = own * job.rng.normal(1, 0.02, 48)
        job.extra[7] = 0.045 if second >= 50 else 0.0  # 11 % of its own time, less than chance does to some
        job.between = 0.1 if second >= 50 else 0.0
        found = told(job.second())
    assert "workload_imbalance" not in {f.fault_class for f in found}


def test_what_makes_all_ranks_slower_is_not_moving_work() -> None:
    job = FakeJob(ranks=3)
    own = job.own.copy()
    for second in range(60):
        job.own = own * job.rng.normal(1, 0.01, 3)
        job.extra[:] = 0.3 if second >= 50 else 0.0
        found = told(job.second())
    assert [(f.fault_class, f.entity) for f in found] == [("fail_slow", "n0/job:j")]


def test_all_ranks_without_input_are_a_stall_of_the_input(job: FakeJob) -> None:
    job.held[0] = "data"
    job.phase = dict.fromkeys(range(4), 1.0)
    [found] = job.run(25)
    assert (found.fault_class, found.entity) == ("data_stall", "n0/job:j")


def test_longer_batches_are_no_slowdown_where_tokens_are_told() -> None:
    job = FakeJob()
    job.tokens[:] = 1000.0
    assert job.run(40) == []
    job.tokens[:], job.extra[:] = 1500.0, 0.5
    assert job.run(40) == []


@pytest.mark.parametrize(("flag", "word"), [(2, "loss"), (4, "gradient norm")])
def test_a_number_that_is_none_is_told(job: FakeJob, flag: int, word: str) -> None:
    job.flags = float(flag)
    [found] = job.run(1)
    assert (found.fault_class, found.severity) == ("loss_fault", "warning")
    assert f"the {word} of rank 0" in found.sentence
    job.flags = 0.0
    job.run(5)
    assert job.run(1) == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["up", "down", "steps"]), st.integers(0, 3), st.text(max_size=8)),
        max_size=25,
    )
)
def test_any_order_of_events_and_any_text_leaves_the_stage_standing(script) -> None:
    fleet, training = Fleet(), Training()
    fleet.node("n0", 1)
    for what, rank, text in script:
        fields = {"world_size": text, "restart": text, "reason": text, "phase": text}
        if what != "steps":
            fleet.event("n0", f"rank_{what}", f"rank:j/{rank}", origin="job", fields=fields)
        ends, values = np.array([fleet.now_ns], np.int64), np.full((1, 1), np.nan, np.float32)
        rows = StepRows(
            node="n0", entity=f"rank:j/{rank}", metrics=("rank_step",), end_ns=ends, values=values
        )
        training.tick(replace(fleet.advance(1), steps=(rows,) if what == "steps" else ()))
    assert all(len(job.ranks) <= 4 for job in training.jobs.by_name.values())
