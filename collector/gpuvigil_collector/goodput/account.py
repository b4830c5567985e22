"""One job's time, second by second, in buckets; and what each of its failures cost.

Wall time is given out when a step ends, a process dies or a new attempt begins; what has not ended yet is
`waiting`. A step that was done before (its number is at most the highest) is recompute. Times are seconds.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import msgspec
import numpy as np

from gpuvigil_detectors.base import Float32
from gpuvigil_detectors.training.jobs import CHECKPOINT, DATA, EVAL, SECOND_NS, SECONDS, STEP, Job, Rank

BUCKETS: Final = (
    "useful", "init", "data", "checkpoint", "eval", "recompute", "slow", "detect", "queue", "restart",
)  # fmt: skip
LOST: Final = ("recompute", "detect", "queue", "restart")
LOSSES_MAX: Final = 100
_HOUR_NS: Final = 3600 * SECOND_NS
_MINUTE_NS: Final = 60 * SECOND_NS
_USUAL_MAX: Final = 100
_USUAL_MIN: Final = 10
_STALL: Final = 1.5  # a step so much longer than usual was held by something


class Loss(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One failure: when, the highest step by then, and what it cost in each bucket of LOST."""

    at_ns: int
    step: int
    ranks: int
    cost: dict[str, float] = msgspec.field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Wall time lost so far."""
        return sum(self.cost.values())


class Account(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One job. cursor_ns: all before it is given out. state: what the time after it will be."""

    job: str
    began_ns: int
    cursor_ns: int
    ranks: int = 1
    nodes: int = 1
    state: Literal["starting", "running", "down", "ended"] = "starting"
    attempt_ns: int = 0
    attempts: int = 1
    step: int = -1
    highest: int = -1
    saves: int = 0
    save_seconds: float = 0.0
    seconds: dict[str, float] = msgspec.field(default_factory=lambda: dict.fromkeys(BUCKETS, 0.0))
    losses: list[Loss] = msgspec.field(default_factory=list)
    usual: list[float] = msgspec.field(default_factory=list)
    minutes: list[tuple[int, float, float]] = msgspec.field(default_factory=list)

    def take(self, job: Job, slowdown: float = 0.0) -> None:
        """Account for what one tick brought. slowdown: 0.1 = the training stage says 10 % slower."""
        self.ranks = max(job.world_size, len(job.ranks))
        self.nodes = len({rank.node for rank in job.ranks.values()})
        self._attempt(job)
        lead = _lead(job)
        if lead is not None:
            self._steps(lead, slowdown)
        self._ends(job)

    def _attempt(self, job: Job) -> None:
        if self.attempt_ns == 0:
            self.attempt_ns = job.began_ns
        elif job.began_ns > self.attempt_ns:
            if self.state not in {"down", "ended"}:  # its death was never told
                self._fail(self.cursor_ns)
            self._give("queue", job.began_ns)
            self.attempt_ns, self.state = job.began_ns, "starting"
            self.attempts += 1

    def _steps(self, rank: Rank, slowdown: float) -> None:
        new = (rank.end_ns > self.cursor_ns) & (rank.end_ns > self.attempt_ns)
        for row, end_ns in zip(rank.steps[new], rank.end_ns[new], strict=True):
            if not math.isfinite(row[STEP]) or self.state in {"down", "ended"}:
                continue
            self._step(row, int(end_ns), slowdown)

    def _step(self, row: Float32, end_ns: int, slowdown: float) -> None:
        """Give out the time until the end of one row of steps."""
        number, seconds = int(row[STEP]), float(row[SECONDS])
        wall = max(0.0, (end_ns - self.cursor_ns) / SECOND_NS)
        if self.state == "starting":
            before = max(0.0, wall - seconds) if seconds > 0 else 0.0
            self._give("restart" if self.losses else "init", self.cursor_ns + int(before * SECOND_NS))
            self.state, wall = "running", wall - before
        again = number <= self.highest
        shares = {"recompute": 1.0} if again else self._shares(row, seconds, slowdown)
        for bucket, share in shares.items():
            self._add(bucket, wall * share)
        self._note(end_ns, wall * shares.get("useful", 0.0), wall)
        if row[CHECKPOINT] > 0:
            self.saves += 1
            self.save_seconds += float(row[CHECKPOINT])
        self.step, self.highest, self.cursor_ns = number, max(number, self.highest), end_ns

    def _shares(self, row: Float32, seconds: float, slowdown: float) -> dict[str, float]:
        """What share of a step each bucket has; the rest is useful."""
        if not seconds > 0:
            return {"useful": 1.0}
        parts = {"data": row[DATA], "checkpoint": row[CHECKPOINT], "eval": row[EVAL]}
        shares = {name: min(1.0, float(part) / seconds) for name, part in parts.items() if part > 0}
        own = seconds * (1 - min(1.0, sum(shares.values())))
        if len(self.usual) >= _USUAL_MIN:  # what holds a few steps is not the usual
            usual = float(np.median(self.usual))
            if own > _STALL * usual:
                shares["slow"] = (own - usual) / seconds
        if slowdown > 0 and "slow" not in shares:
            shares["slow"] = own / seconds * slowdown / (1 + slowdown)
        if "slow" not in shares:
            self.usual = [*self.usual, own][-_USUAL_MAX:]
        shares["useful"] = max(0.0, 1 - sum(shares.values()))
        return shares

    def _ends(self, job: Job) -> None:
        died = [r for r in job.ranks.values() if r.ended == "died" and r.ended_ns >= self.attempt_ns]
        if died and self.state in {"starting", "running"}:
            self._fail(min(rank.ended_ns for rank in died))
        elif not job.living and self.state in {"starting", "running"}:
            self.state = "ended"

    def _fail(self, at_ns: int) -> None:
        loss = Loss(at_ns=at_ns, step=self.highest, ranks=self.ranks)
        self.losses = [*self.losses, loss][-LOSSES_MAX:]
        self._give("detect", at_ns)
        self.state = "down"

    def _give(self, bucket: str, until_ns: int) -> None:
        if until_ns > self.cursor_ns:
            seconds = (until_ns - self.cursor_ns) / SECOND_NS
            self._add(bucket, seconds)
            self._note(until_ns, 0.0, seconds)
            self.cursor_ns = until_ns

    def _add(self, bucket: str, seconds: float) -> None:
        self.seconds[bucket] += seconds
        if bucket in LOST and self.losses:
            cost = self.losses[-1].cost
            cost[bucket] = cost.get(bucket, 0.0) + seconds

    def _note(self, now_ns: int, useful: float, wall: float) -> None:
        """Keep an hour of minutes, for the sliding share."""
        minute = now_ns // _MINUTE_NS
        if self.minutes and self.minutes[-1][0] == minute:
            useful, wall = useful + self.minutes[-1][1], wall + self.minutes[-1][2]
            self.minutes.pop()
        self.minutes = [row for row in self.minutes if row[0] > minute - 60] + [(minute, useful, wall)]

    @property
    def wall(self) -> float:
        """All time given out."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float | None:
        """Useful share of all time; None before there is any."""
        return self.seconds["useful"] / self.wall if self.wall > 0 else None

    def goodput_lately(self, now_ns: int) -> float | None:
        """Useful share of the last hour's time."""
        rows = [row for row in self.minutes if row[0] > (now_ns - _HOUR_NS) // _MINUTE_NS]
        wall = sum(row[2] for row in rows)
        return sum(row[1] for row in rows) / wall if wall > 0 else None


def _lead(job: Job) -> Rank | None:
    """The lowest rank that tells steps: all ranks of a synchronous job end them together."""
    told = [number for number, rank in job.ranks.items() if len(rank.steps)]
    return job.ranks[min(told)] if told else None
