"""Whether a job is slower than its own past, and whether one rank is the reason.

Feeds the steps of each job's lowest rank to FailSlow, all jobs at once, and keeps what holds of each. Where
tokens are given, time for the work is judged, so that longer batches are no slowdown.
Blind spot: a job that is slow from its first step on has no better past.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_detectors.training import workload
from gpuvigil_detectors.training.fail_slow import FailSlow
from gpuvigil_detectors.training.jobs import DATA, FLAGS, FORWARD, SECONDS, STEP, TOKENS, UNUSUAL, Job, Rank

_NEWEST: Final = 7
_ROUNDS_MAX: Final = 60  # steps of one job in one tick; the agent sends 50
_LATE: Final = 1.05  # a rank's own time over the others' median


@dataclass(slots=True, kw_only=True)
class Pace:
    """What holds of one job: slow, or suspected. ratio: steps over the job's past, with its 95 % interval."""

    judged_ns: int = 0
    slow: bool = False
    suspect: bool = False
    since_ns: int = 0
    ratio: float = 1.0
    low: float = 1.0
    high: float = 1.0


class Slowness:
    """The paces of all jobs. One thread calls `take` each tick."""

    def __init__(self) -> None:
        self.paces: dict[str, Pace] = {}
        self._judge = FailSlow()

    def take(self, jobs: Mapping[str, Job]) -> None:
        """Judge the steps that ended since the last call."""
        self.paces = {name: self.paces.get(name) or Pace() for name in jobs}
        waiting = {name: rows for name, job in jobs.items() if (rows := self._new(job))}
        names = tuple(self.paces)
        for turn in range(max((len(rows) for rows in waiting.values()), default=0)):
            self._round(names, {name: rows[turn] for name, rows in waiting.items() if turn < len(rows)})

    def _new(self, job: Job) -> list[tuple[NDArray[np.float32], int]]:
        ranks = job.living
        if not ranks:
            return []
        fresh = ranks[0].end_ns > self.paces[job.name].judged_ns
        rows, ends = ranks[0].steps[fresh][-_ROUNDS_MAX:], ranks[0].end_ns[fresh][-_ROUNDS_MAX:]
        return list(zip(rows, ends.tolist(), strict=True))

    def _round(self, names: tuple[str, ...], steps: dict[str, tuple[NDArray[np.float32], int]]) -> None:
        """Give each of these jobs one step, and note what is said of them."""
        seconds, excluded = np.full(len(names), np.nan), np.zeros(len(names), dtype=bool)
        work = np.full((len(names), workload.FEATURES), np.nan)
        places = [place for place, name in enumerate(names) if name in steps]
        for place in places:
            row = steps[names[place]][0]
            seconds[place] = row[SECONDS]
            excluded[place] = bool(int(np.nan_to_num(row[FLAGS])) & UNUSUAL)
            work[place, 0] = row[TOKENS] if row[TOKENS] > 0 else np.nan
        found = self._judge.advance(names, seconds, work, excluded)
        for place in places:
            pace, end_ns = self.paces[names[place]], steps[names[place]][1]
            slow = bool(found.confirmed[place])
            if slow and not pace.slow:
                pace.since_ns = end_ns
            pace.judged_ns, pace.slow, pace.suspect = end_ns, slow, bool(found.suspect[place])
            shares = (found.slowdown[place], found.low[place], found.high[place])
            pace.ratio, pace.low, pace.high = (1 + float(share) if slow else 1.0 for share in shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """The one rank whose own time is over the others'. own, others: seconds a step.

    where: data or forward, whichever makes most of the difference. work: its tokens over the others' median,
    NaN where they are not told.
    """

    rank: Rank
    own: float
    others: float
    where: str
    work: float


def late_rank(job: Job) -> Late | None:
    """Find the one rank whose own time (data and forward) is 5 % over the others' in the newest steps.

    None: no phases, too few ranks, or no single one.
    """
    ranks = [rank for rank in job.living if len(rank.steps) >= _NEWEST]
    if len(ranks) < 2:
        return None
    parts = np.array([_own_times(rank) for rank in ranks])
    own = parts.sum(axis=1)
    if not np.isfinite(own).all() or own.max() <= 0:
        return None
    worst = int(own.argmax())
    rest = np.delete(own, worst)
    others = float(np.median(rest))
    if own[worst] <= _LATE * others or own[worst] <= _LATE * float(rest.max()):
        return None
    gaps = parts[worst] - np.median(np.delete(parts, worst, axis=0), axis=0)
    tokens = np.array([np.median(rank.steps[-_NEWEST:, TOKENS]) for rank in ranks])
    usual = float(np.median(np.delete(tokens, worst)))
    return Late(
        rank=ranks[worst], own=float(own[worst]), others=others,
        where="data" if gaps[0] > gaps[1] else "forward",
        work=float(tokens[worst]) / usual if usual > 0 else float("nan"),
    )  # fmt: skip


def _own_times(rank: Rank) -> NDArray[np.float64]:
    """Median seconds in data and in forward of the newest steps."""
    times = rank.steps[-_NEWEST:, [DATA, FORWARD]].astype(np.float64)
    if not np.isfinite(rank.steps[-1, STEP]):
        return np.full(2, np.nan)
    out: NDArray[np.float64] = np.median(times, axis=0)
    return out


def data_share(job: Job) -> tuple[float, float] | None:
    """Share of a step that waits for input: of the newest, and of those before; None while unknown."""
    shares = [
        rank.steps[:, DATA] / np.maximum(rank.steps[:, SECONDS], 1e-9)
        for rank in job.living
        if len(rank.steps) >= 4 * _NEWEST
    ]
    if not shares:
        return None
    newest = float(np.median([np.median(share[-_NEWEST:]) for share in shares]))
    before = float(np.median([np.median(share[:-_NEWEST]) for share in shares]))
    return (newest, before) if np.isfinite(newest + before) else None
