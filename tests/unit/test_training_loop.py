"""What slows or spoils a loop: input, work, spikes, memory, saves; and a silent agent whose job goes on."""

from __future__ import annotations

import pytest
from unit.training_job import FakeJob, running_job, told  # noqa: F401 - a fixture

from gpuvigil_detectors.base import Finding


def test_a_rank_that_waits_for_its_input_is_a_data_stall_of_its_own(job: FakeJob) -> None:
    job.extra[1], job.data[1] = 0.15, 0.085
    found = told(job.run(8))
    assert [(f.rule, f.fault_class, f.entity) for f in found] == [
        ("late_rank_input", "data_stall", "n0/rank:j/1")
    ]


def test_input_that_holds_every_rank_is_a_data_stall_of_the_job(job: FakeJob) -> None:
    job.extra[:], job.data[:] = 0.20, 0.11
    found = told(job.run(8))
    assert [(f.rule, f.fault_class, f.entity) for f in found] == [
        ("input_holds_it", "data_stall", "n0/job:j")
    ]


def test_a_rank_with_more_work_is_nobodys_fault() -> None:
    job = FakeJob()
    job.tokens[:] = 1000.0
    assert told(job.run(40)) == []
    job.extra[2], job.tokens[2] = 0.10, 1250.0  # a quarter more of its own time for a quarter more tokens
    found = told(job.run(10))
    assert [(f.rule, f.fault_class, f.entity) for f in found] == [
        ("more_work", "workload_imbalance", "n0/job:j")
    ]


def test_a_late_rank_that_changes_follows_the_work(job: FakeJob) -> None:
    seen = set()
    for turn in range(24):
        job.extra[:] = 0
        job.extra[turn // 4 % 4] = 0.15
        seen |= {(f.rule, f.fault_class) for f in told(job.second())[-1:]}
    found = told(job.second())
    assert [(f.rule, f.fault_class) for f in found] == [("late_rank_moves", "workload_imbalance")]


@pytest.mark.parametrize(("name", "usual", "odd"), [("loss", 2.0, 9.0), ("norm", 1.0, 40.0)])
def test_spikes_are_told_when_several_come_and_one_is_training(job: FakeJob, name, usual, odd) -> None:
    setattr(job, name, usual)
    assert told(job.run(30)) == []
    setattr(job, name, odd)
    assert told(job.run(1)) == [], "two steps"
    setattr(job, name, usual)
    assert told(job.run(10)) == []
    setattr(job, name, odd)
    found = told(job.run(2))
    assert [(f.rule, f.fault_class) for f in found] == [("spikes", "loss_fault")]
    assert "usually" in found[0].sentence
    setattr(job, name, usual)
    job.run(3)
    assert told(job.run(1)) == []


def test_a_falling_loss_is_no_spike(job: FakeJob) -> None:
    for step in range(200):
        job.loss = 8.0 * 0.98**step
        assert told(job.second()) == []


def test_memory_that_only_grows_is_told_and_a_plateau_is_not(job: FakeJob) -> None:
    job.allocated = 8e9
    assert told(job.run(250)) == []
    found: list[Finding] = []
    for second in range(260):
        job.allocated = 8e9 * (1 + second / 1000)
        found = told(job.second())
    assert [(f.rule, f.fault_class, f.entity) for f in found] == [
        ("device_memory_grows", "memory_leak_host", "n0/rank:j/0")
    ]


def test_host_memory_that_only_grows_is_told(job: FakeJob) -> None:
    found: list[Finding] = []
    for second in range(620):
        job.fleet.set("rank_memory_bytes", "n1/rank:j/3", (10 + second / 100) * 2**30)
        found = told(job.second())
    assert [(f.rule, f.entity) for f in found] == [("host_memory_grows", "n1/rank:j/3")]


def test_a_save_that_does_not_end_is_told_after_it_has_had_its_time(job: FakeJob) -> None:
    job.held[2] = "save"
    job.phase[2] = 5.0
    assert told(job.run(1700)) == []
    found = told(job.run(150))
    assert [(f.rule, f.fault_class, f.entity) for f in found] == [
        ("save_does_not_end", "checkpoint_stall", "n1/rank:j/2")
    ]


def test_a_silent_agent_whose_job_goes_on_is_no_dead_node(job: FakeJob) -> None:
    job.fleet.node("n1", 2, connected=False)
    found = job.run(20)
    assert [(f.rule, f.fault_class, f.entity, f.notify) for f in found] == [
        ("job_goes_on", "monitor_fault", "n1/node", False)
    ]


def test_a_hang_in_which_one_rank_waits_for_input_is_a_data_stall(job: FakeJob) -> None:
    job.held[1] = "host"
    job.phase[1] = 1.0
    found = told(job.run(20))
    assert [(f.rule, f.fault_class, f.entity) for f in found] == [("no_step", "data_stall", "n0/rank:j/1")]
