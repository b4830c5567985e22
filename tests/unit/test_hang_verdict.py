"""From suspicion to verdict: the job's own timeout, and ranks that give up because another holds them."""

from __future__ import annotations

import pytest
from unit.fake_snapshot import SECOND
from unit.training_job import FakeJob, running_job, told  # noqa: F401 - a fixture


def says(job: FakeJob, timeout: str) -> None:
    """All ranks that run say where they stand, and how long they wait for a collective."""
    for rank in range(job.ranks):
        fields = {"seconds": "11", "stack": "train.py:3 main", "timeout": timeout}
        job.fleet.event(f"n{rank // 2}", "collectives", job.name(rank), origin="job", fields=fields)


def test_longer_than_the_job_itself_allows_is_a_verdict_though_nobody_can_be_named(job: FakeJob) -> None:
    job.held[1] = "all alike"
    job.run(12)
    says(job, "30")
    [found] = job.run(16)
    assert found.severity == "warning", "28 s"
    [found] = job.run(3)
    assert (found.fault_class, found.severity, found.entity) == ("hang", "critical", "n0/job:j")
    assert "longer than the 30 s that it allows its collectives" in found.sentence


@pytest.mark.parametrize("timeout", ["0", "", "-5", "nan", "1e3", "9" * 40])
def test_a_timeout_that_is_none_makes_no_verdict(job: FakeJob, timeout: str) -> None:
    job.held[1] = "all alike"
    job.run(12)
    says(job, timeout)
    [found] = job.run(60)
    assert found.severity == "warning"


def test_a_timeout_told_before_the_stand_is_none_of_it(job: FakeJob) -> None:
    says(job, "16")
    job.run(30)
    job.held[1] = "all alike"
    [found] = job.run(40)
    assert found.severity == "warning"


def test_ranks_that_give_up_end_of_the_hang_and_its_culprit_stays_named(job: FakeJob) -> None:
    job.held[3] = "stopped"
    [hang] = job.run(21)
    assert (hang.severity, hang.entity) == ("critical", "n1/rank:j/3")
    job.down(0)
    [verdict] = told(job.run(1))
    assert (verdict.fault_class, verdict.severity, verdict.entity) == ("hang", "critical", "n1/rank:j/3")
    assert (verdict.rule, verdict.start_ns) == (hang.rule, hang.start_ns), "the same claim"
    assert "then ranks gave up, rank 0 after 21 s" in verdict.sentence
    for rank in (1, 2, 3):
        job.down(rank, after_ns=rank * 400_000_000)
    found = job.run(5)
    assert [one.entity for one in told(found)] == ["n1/rank:j/3"]
    assert {one.severity for one in found if not one.notify} == {"info"}, "deaths are recorded"
    for rank in range(4):
        job.up(rank, restart=1)
    job.held.clear()
    assert job.run(5) == []


def test_the_death_of_the_culprit_itself_is_the_fault(job: FakeJob) -> None:
    job.held[3] = "stopped"
    job.run(20)
    job.down(3)
    [found] = job.run(1)
    assert (found.fault_class, found.severity, found.entity) == ("process_dead", "critical", "n1/rank:j/3")


@pytest.mark.parametrize(("timeout", "fault_class"), [("20", "hang"), ("600", None)])
def test_who_ends_a_hung_job_is_no_timeout(job: FakeJob, timeout: str, fault_class: str | None) -> None:
    job.held[3] = "stopped"
    job.run(12)
    says(job, timeout)
    job.run(10)
    for rank in range(4):
        job.down(rank, after_ns=rank * SECOND // 20)
    assert [one.fault_class for one in told(job.run(1))] == ([fault_class] if fault_class else [])


@pytest.mark.parametrize(("timeout", "fault_class"), [("20", "hang"), ("600", "process_dead")])
def test_a_death_where_nobody_is_blamed_is_the_fault_unless_the_job_had_timed_out(
    job, timeout, fault_class
) -> None:
    job.held[1] = "all alike"
    job.run(12)
    says(job, timeout)
    job.run(10)
    job.down(2)
    [found] = told(job.run(1))
    assert (found.fault_class, found.severity) == (fault_class, "critical")


def test_a_death_long_after_a_hang_that_passed_is_a_death(job: FakeJob) -> None:
    job.held[3] = "stopped"
    job.run(20)
    job.held.clear()
    job.run(3)
    job.down(0)
    [found] = job.run(1)
    assert (found.fault_class, found.entity) == ("process_dead", "n0/rank:j/0")
