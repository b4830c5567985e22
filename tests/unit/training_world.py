"""One job of two ranks on a fake clock, told step by step: what accounting is tested with."""

from __future__ import annotations

import numpy as np
from unit.fake_snapshot import SECOND, START_NS, FakeSnapshot

from gpuvigil_detectors.base import FactEvent, StepRows
from gpuvigil_detectors.training.jobs import COLUMNS

PLACES = {"data": "rank_data_seconds", "checkpoint": "rank_checkpoint_seconds", "eval": "rank_eval_seconds"}


class World:
    """Everything told since the last snapshot; the clock moves by `wait` and by `step`."""

    def __init__(self, ranks: int = 2) -> None:
        self.now_ns = START_NS
        self.ranks = ranks
        self._events: list[FactEvent] = []
        self._steps: list[StepRows] = []

    def wait(self, seconds: float) -> None:
        self.now_ns += round(seconds * SECOND)

    def up(self, rank: int, restart: int = 0) -> None:
        fields = {"world_size": str(self.ranks), "restart": str(restart)}
        self._event("rank_up", rank, fields)

    def down(self, rank: int, reason: str) -> None:
        self._event("rank_down", rank, {"reason": reason, "phase": "backward"})

    def step(self, number: int, seconds: float = 1.0, **phases: float) -> None:
        """All ranks end a step that took so long; the clock moves with them."""
        self.wait(seconds)
        row = np.full((1, len(COLUMNS)), np.nan, np.float32)
        row[0, COLUMNS.index("rank_step")], row[0, COLUMNS.index("rank_step_seconds")] = number, seconds
        row[0, COLUMNS.index("rank_step_flags")] = 0
        for name, spent in phases.items():
            row[0, COLUMNS.index(PLACES[name])] = spent
        for rank in range(self.ranks):
            ends = np.array([self.now_ns], np.int64)
            self._steps.append(
                StepRows(node="n0", entity=f"rank:j1/{rank}", metrics=COLUMNS, end_ns=ends, values=row)
            )

    def snapshot(self) -> FakeSnapshot:
        events, steps = tuple(self._events), tuple(self._steps)
        self._events, self._steps = [], []
        return FakeSnapshot(now_ns=self.now_ns, events=events, steps=steps)

    def _event(self, kind: str, rank: int, fields: dict[str, str]) -> None:
        self._events.append(
            FactEvent(node="n0", time_ns=self.now_ns, kind=kind, origin="job", entity=f"rank:j1/{rank}",
                      fields=fields)
        )  # fmt: skip
