"""A synchronous job on a fake fleet, ticked second by second through the training stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from unit.fake_snapshot import Fleet

from gpuvigil_detectors.base import Finding, StepRows
from gpuvigil_detectors.training.jobs import (
    ALLOCATED,
    COLUMNS,
    DATA,
    FLAGS,
    FORWARD,
    GRADIENT,
    LOSS,
    SECONDS,
    STEP,
    TOKENS,
)
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
        self.between = 0.0  # share of a step that the exchange takes longer
        self.held: dict[int, str] = {}
        self.phase = dict.fromkeys(range(ranks), 3.0)
        self.age = 0.0
        self.tokens = np.full(ranks, np.nan)
        self.flags = 0.0
        self.loss = self.norm = self.allocated = np.nan
        self.data = np.full(ranks, 0.01)  # seconds of a rank's own that wait for input
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
            took = self.seconds * self.rng.normal(1, 0.01) * (1 + self.extra.max() + self.between)
            for rank in range(self.ranks):
                own = self.seconds * self.own[rank] * (1 + self.extra[rank] / self.own[rank])
                row = np.full((1, len(METRICS)), np.nan, np.float32)
                row[0, [STEP, SECONDS, DATA, FORWARD]] = [
                    self.step,
                    took,
                    self.data[rank],
                    own - self.data[rank],
                ]
                row[0, [TOKENS, FLAGS, LOSS, GRADIENT]] = [
                    self.tokens[rank],
                    self.flags,
                    self.loss,
                    self.norm,
                ]
                row[0, ALLOCATED] = self.allocated
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


def told(found: list[Finding]) -> list[Finding]:
    """The findings that notify."""
    return [finding for finding in found if finding.notify]


@pytest.fixture(name="job")
def running_job() -> Iterator[FakeJob]:
    """A job of four ranks that has run well for a while."""
    made = FakeJob()
    assert made.run(40) == []
    yield made
