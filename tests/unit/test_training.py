"""The training stage on a fake clock: jobs that run well are silent, those that do not are named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.fake_snapshot import SECOND, Fleet

from gpuvigil_detectors.base import Finding, StepRows
from gpuvigil_detectors.training.jobs import COLUMNS
from gpuvigil_detectors.training.stage import Training

METRICS = COLUMNS


class FakeJob:
    """A synchronous job on a fake fleet: all ranks end each step together; some may be made to misbehave."""

    def __init__(self, ranks: int = 4, seconds: float = 0.5, seed: int = 0) -> None:
        self.fleet, self.training = Fleet(), Training()
        self.rng = np.random.default_rng(seed)
        self.ranks, self.seconds, self.step = ranks, seconds, 0
        self.own = np.full(ranks, 0.4)  # share of a step that is a rank's own (data and forward)
        self.extra = np.zeros(ranks)
        self.held: dict[int, str] = {}
        self.phase = dict.fromkeys(range(ranks), 3.0)
        self.age = 0.0
        self.tokens = np.nan
        self.flags = 0.0
        self.ended: set[int] = set()
        for rank in range(ranks):
            self.fleet.node(f"n{rank // 2}", 2)
            self.up(rank)

    def name(self, rank: int) -> str:
        return f"rank:j/{rank}"

    def up(self, rank: int, restart: int = 0) -> None:
        self.ended.discard(rank)
        fields = {"world_size": str(self.ranks), "restart": str(restart)}
        fields["gpu"] = f"GPU-n{rank // 2}-{rank % 2}"
        self.fleet.event(f"n{rank // 2}", "rank_up", self.name(rank), origin="job", fields=fields)

    def down(self, rank: int, reason: str = "died", after_ns: int = 0) -> None:
        self.ended.add(rank)
        fields = {"reason": reason, "phase": "backward", "step": str(self.step)}
        self.fleet.event(f"n{rank // 2}", "rank_down", self.name(rank), origin="job", fields=fields,
                         time_ns=self.fleet.now_ns + after_ns)  # fmt: skip

    def second(self) -> list[Finding]:
        """One second of the job: the steps that fit into it, then one tick of the stage."""
        steps: list[StepRows] = []
        moving = not self.held and not self.ended
        count = round(1 / self.seconds) if moving else 0
        self.age = 0.0 if moving else self.age + 1
        for _ in range(count):
            self.step += 1
            took = self.seconds * self.rng.normal(1, 0.01) * (1 + self.extra.max())
            for rank in range(self.ranks):
                own = self.seconds * self.own[rank] * (1 + self.extra[rank] / self.own[rank])
                row = np.full((1, len(METRICS)), np.nan, np.float32)
                row[0, [0, 1, 2, 3, 6, 9]] = [self.step, took, 0.01, own - 0.01, self.tokens, self.flags]
                ends = np.array([self.fleet.now_ns], np.int64)
                steps.append(StepRows(node=f"n{rank // 2}", entity=self.name(rank), metrics=METRICS,
                                      end_ns=ends, values=row))  # fmt: skip
        self._status()
        return self.training.tick(replace(self.fleet.advance(1), steps=tuple(steps)))

    def _status(self) -> None:
        for rank in range(self.ranks):
            entity = f"n{rank // 2}/{self.name(rank)}"
            if rank in self.ended:
                self.fleet.stop(entity)
                continue
            beat = self.age if self.held.get(rank) == "stopped" else 0.3
            self.fleet.set("rank_heartbeat_age_seconds", entity, beat)
            self.fleet.set("rank_step_age_seconds", entity, self.age)
            self.fleet.set("rank_phase", entity, self.phase[rank])

    def run(self, seconds: int) -> list[Finding]:
        found: list[Finding] = []
        for _ in range(seconds):
            found = self.second()
        return found


@pytest.fixture
def job() -> Iterator[FakeJob]:
    made = FakeJob()
    assert made.run(40) == []
    yield made


def test_a_job_that_runs_well_is_silent_for_long() -> None:
    job = FakeJob(seed=4)
    assert all(job.second() == [] for _ in range(600))


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
        (lambda job: (job.held.update({1: "host"}), job.phase.update({1: 1.0})), "host", "n0/rank:j/1"),
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
    while not (found := job.second()):
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


def test_longer_batches_are_no_slowdown_where_tokens_are_told() -> None:
    job = FakeJob()
    job.tokens = 1000.0
    assert job.run(40) == []
    job.tokens, job.extra[:] = 1500.0, 0.5
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
