"""Fail-slow: the job's steps take longer than its own past, and go on doing so.

All ranks of a synchronous job agree to a barrier, so one series of step times a job is enough. Works on the
logarithm of the time over what the workload model expects. Two states: `suspect`, early, from Bayesian
change-point detection (arms evidence, claims nothing), and `confirmed`, when k of the last n steps lie above
the baseline. A baseline is the median of the newest clean steps; it is frozen while the job is suspect or
slow, until the steps are back within 5 %. A job that gets faster is learned anew and is no fault.
Source: methods.md section 5.5.
Blind spot: a job slow from its first step on; a change of work that nobody reports is taken for a fault.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil_detectors.series_state import SeriesState
from gpuvigil_detectors.training import bocd, workload
from gpuvigil_detectors.training.slow_limits import Bool, Float, SlowLimits, SlowOpinion

KEPT: Final = 100
"""Clean steps that make the baseline."""
_RECENT: Final = 10
_DELAY: Final = 20
_MEMORY_FREE: Final = 0.3  # what chance alone shows
_TINY: Final = 1e-12
_MAD_TO_SIGMA: Final = 1.4826
_MEDIAN_TO_MEAN: Final = 1.2533  # standard error of a median over that of a mean, normal data
_SIGMA_LEAST: Final = 0.005
_LINE_LEAST: Final = 0.05  # of a step that was seen: a line may not predict next to nothing


class FailSlow:
    """Many jobs at once; one row a job."""

    name = "fail_slow"

    def __init__(self, limits: SlowLimits | None = None) -> None:
        self.limits = limits or SlowLimits()
        runs = (bocd.RUNS,)
        self.state = SeriesState(
            steps=("i8", 0, ()), count=("i8", 0, ()), place=("i8", 0, ()), learned=("i8", 0, ()),
            seconds=("f8", np.nan, (KEPT,)), work=("f8", np.nan, (KEPT, workload.FEATURES)),
            line=("f8", 0.0, (workload.FEATURES + 1,)), lined=("?", False, ()), hold=("i8", 0, ()),
            recent=("f8", np.nan, (_RECENT,)), baseline=("f8", np.nan, ()), sigma=("f8", np.nan, ()),
            chances=("f8", 0.0, runs), means=("f8", 0.0, runs), betas=("f8", bocd.ALPHA, runs),
            suspect_left=("i8", 0, ()), rule=("i8", -1, ()), since=("i8", -1, ()),
            after=("f8", np.nan, (KEPT,)), spread=("f8", 0.0, ()), alike=("f8", 0.0, ()),
            last=("f8", 0.0, ()), off=("i8", 0, ()),
            queue=("f8", np.nan, (_DELAY,)), queue_work=("f8", np.nan, (_DELAY, workload.FEATURES)),
        )  # fmt: skip

    def advance(
        self,
        jobs: tuple[str, ...],
        seconds: Float,
        work: Float | None = None,
        excluded: Bool | None = None,
    ) -> SlowOpinion:
        """Take one step of each job and say what holds now.

        seconds: [S] step times; NaN where a job ended no step. work: [S, 2] tokens and sum of squared
        lengths, NaN where not told. excluded: [S], steps that compiled, evaluated or saved: neither judged
        nor learned.
        """
        state, limits = self.state, self.limits
        state.align(jobs)
        state["chances"][state["chances"].sum(axis=1) == 0, 0] = 1.0  # a new row: run length 0 for certain
        work = np.full((len(jobs), workload.FEATURES), np.nan) if work is None else work
        ended = np.isfinite(seconds) & (seconds > 0)
        state["steps"][ended] += 1
        usable = ended & (state["steps"] > limits.first)
        usable &= ~excluded if excluded is not None else True
        self._hold(usable, work)
        excess = self._excess(usable, seconds, work)
        judged = np.isfinite(excess)
        self._remember(judged, excess)
        self._suspect(judged, excess)
        self._confirm(judged)
        self._recover(judged)
        self._learn(usable, excess, seconds, work)
        return self._opinion(excess)

    def relearn(self, rows: Bool) -> None:
        """Forget the past of the rows [S]: their job's work changed, or it got faster."""
        state = self.state
        for name in ("count", "place", "learned", "hold", "suspect_left", "off", "spread", "alike"):
            state[name][rows] = 0
        for name in ("seconds", "work", "recent", "baseline", "sigma", "after", "queue"):
            state[name][rows] = np.nan
        state["line"][rows], state["lined"][rows] = 0.0, False
        state["rule"][rows], state["since"][rows] = -1, -1
        self._restart(rows)

    def _restart(self, rows: Bool) -> None:
        chances, means, betas = bocd.fresh(int(rows.sum()))
        self.state["chances"][rows], self.state["means"][rows], self.state["betas"][rows] = (
            chances,
            means,
            betas,
        )

    def _hold(self, usable: Bool, work: Float) -> None:
        """Work unlike all that was seen gets no opinion until some of its like were learned."""
        state = self.state
        settled = usable & (state["count"] >= self.limits.warmup) & np.isfinite(work).any(axis=1)
        strange = np.zeros_like(settled)
        rows = np.flatnonzero(settled)
        if len(rows):
            strange[rows] = workload.foreign(work[rows], state["work"][rows], state["count"][rows])
        state["hold"][usable] = np.maximum(state["hold"][usable] - 1, 0)
        state["hold"][strange] = self.limits.hold

    def _expected(self, rows: Any, work: Float) -> Float:
        """Seconds that the work should take; 1 where there is no line, so that the baseline says it all."""
        state = self.state
        lined = state["lined"][rows]
        floor = _LINE_LEAST * np.nan_to_num(state["seconds"][rows, 0], nan=1.0)
        line = workload.predict(state["line"][rows], work, floor)
        shape = (len(lined),) + (1,) * (line.ndim - 1)
        out: Float = np.where(lined.reshape(shape), line, 1.0)
        return out

    def _excess(self, usable: Bool, seconds: Float, work: Float) -> Float:
        """Log of the step over what is expected; NaN is no opinion."""
        state = self.state
        opinion = usable & (state["count"] >= self.limits.warmup) & (state["hold"] == 0)
        out = np.full(len(seconds), np.nan)
        rows = np.flatnonzero(opinion)
        expected = self._expected(rows, work[rows])
        out[rows] = np.log(seconds[rows] / expected) - state["baseline"][rows]
        return out

    def _remember(self, judged: Bool, excess: Float) -> None:
        recent, after = self.state["recent"], self.state["after"]
        recent[judged] = np.concatenate([recent[judged, 1:], excess[judged, None]], axis=1)
        slow = judged & (self.state["rule"] >= 0)
        after[slow] = np.concatenate([after[slow, 1:], excess[slow, None]], axis=1)

    def _suspect(self, judged: Bool, excess: Float) -> None:
        state, limits = self.state, self.limits
        state["suspect_left"][judged] = np.maximum(state["suspect_left"][judged] - 1, 0)
        rows = np.flatnonzero(judged & (state["rule"] < 0))
        sigma = state["sigma"][rows]
        arrays = (state["chances"][rows], state["means"][rows], state["betas"][rows])
        chances, means, betas = bocd.step(*arrays, excess[rows] / sigma)
        state["chances"][rows], state["means"][rows], state["betas"][rows] = chances, means, betas
        chance, mean = bocd.short_run(chances, means)
        odd = (chance > limits.suspect_chance) & (mean * sigma > np.log1p(limits.suspect_above))
        state["suspect_left"][rows[odd]] = limits.suspect_steps

    def _confirm(self, judged: Bool) -> None:
        state = self.state
        for place, rule in enumerate(self.limits.rules):
            noise = state["sigma"] * (1 + rule.memory * self._memory()) * self._doubt()
            bound = np.maximum(math.log1p(rule.above), rule.sigmas * noise)[:, None]
            window = np.nan_to_num(state["recent"][:, -rule.n :], nan=-np.inf)
            over = window > bound
            enough = (over.sum(axis=1) >= rule.k) & (window > math.log1p(rule.least)).all(axis=1)
            found = judged & (state["rule"] < 0) & enough & over[:, -1]
            state["rule"][found] = place
            state["since"][found] = (state["steps"] - rule.n + 1 + over.argmax(axis=1))[found]
            state["after"][found] = np.nan
            state["after"][found, -rule.n :] = np.where(over, window, np.nan)[found]

    def _memory(self) -> Float:
        """How alike neighbouring clean steps are, beyond chance: correlation of one with the next, [S]."""
        alike = self.state["alike"] / np.maximum(self.state["spread"], _TINY)
        out: Float = np.clip(alike - _MEMORY_FREE, 0.0, 1.0)
        return out

    def _doubt(self) -> Float:
        """Baseline and noise of few clean steps are rough: how much wider a bound has to be, [S]."""
        out: Float = 1 + 1 / np.sqrt(np.maximum(self.state["count"], 1))
        return out

    def _recover(self, judged: Bool) -> None:
        """Back within reach of the reference, or lastingly faster than it: the past is over."""
        state, limits = self.state, self.limits
        last = state["recent"][:, -limits.rules[0].n :]
        full = np.isfinite(last).all(axis=1)
        back = judged & full & (state["rule"] >= 0)
        back[back] = np.median(last[back], axis=1) < np.log1p(limits.back)
        state["rule"][back], state["since"][back] = -1, -1
        state["recent"][back] = np.nan
        self._restart(back)
        bound = np.maximum(np.log1p(limits.rules[0].above), limits.rules[0].sigmas * state["sigma"])
        faster = (np.nan_to_num(last, nan=np.inf) < -bound[:, None]).sum(axis=1) >= limits.rules[0].k
        self.relearn(judged & (state["rule"] < 0) & faster)

    def _learn(self, usable: Bool, excess: Float, seconds: Float, work: Float) -> None:
        """Keep a clean step; refit the line now and then; renew baseline and noise."""
        state, limits = self.state, self.limits
        bound = np.maximum(np.log1p(limits.rules[0].above), limits.rules[0].sigmas * state["sigma"])
        young = (state["count"] < limits.warmup) | (state["hold"] > 0)
        calm = (state["rule"] < 0) & (state["suspect_left"] == 0) & ~self._shifted(usable)
        state["queue"][~calm] = np.nan
        self._correlate(np.flatnonzero(usable & calm & (np.abs(excess) <= bound)), excess)
        # a step is learned once enough steps have followed it without suspicion
        aged, aged_work = state["queue"][:, 0].copy(), state["queue_work"][:, 0].copy()
        clean = np.where(calm & (np.abs(excess) <= bound), seconds, np.nan)
        for name, new in (("queue", clean), ("queue_work", work)):
            state[name][usable] = np.concatenate([state[name][usable, 1:], new[usable, None]], axis=1)
        seconds, work = np.where(young, seconds, aged), np.where(young[:, None], work, aged_work)
        learn = usable & calm & np.isfinite(seconds)
        rows = np.flatnonzero(learn)
        place = state["place"][rows]
        state["seconds"][rows, place], state["work"][rows, place] = seconds[rows], work[rows]
        state["place"][rows] = (place + 1) % KEPT
        state["count"][rows] = np.minimum(state["count"][rows] + 1, KEPT)
        state["learned"][rows] += 1
        due = (state["learned"] % limits.refit == 0) | (state["hold"] == 1)
        told = np.isfinite(work).any(axis=1)
        self._refit(np.flatnonzero(learn & due & told & (state["count"] >= limits.warmup)))
        self._renew(rows)

    def _shifted(self, usable: Bool) -> Bool:
        """Whether the newest steps as a whole lie off the baseline: not learned, unless that lasts."""
        state, limits = self.state, self.limits
        off = np.zeros(len(usable), dtype=bool)
        rows = np.flatnonzero(np.isfinite(state["recent"]).all(axis=1))
        noise = (state["sigma"] * (1 + limits.shift_memory * self._memory()) * self._doubt())[rows]
        bound = np.maximum(math.log1p(limits.shift), limits.shift_sigmas * noise)
        off[rows] = np.abs(np.median(state["recent"][rows], axis=1)) > bound
        state["off"][usable] = np.where(off, state["off"] + 1, 0)[usable]
        return off & (state["off"] <= limits.shift_steps)

    def _correlate(self, rows: NDArray[np.int64], excess: Float) -> None:
        state = self.state
        new = excess[rows]
        state["spread"][rows] += (new**2 - state["spread"][rows]) / KEPT
        state["alike"][rows] += (new * state["last"][rows] - state["alike"][rows]) / KEPT
        state["last"][rows] = new

    def _refit(self, rows: NDArray[np.int64]) -> None:
        state = self.state
        if len(rows):
            arrays = (state["seconds"][rows], state["work"][rows], state["count"][rows])
            state["line"][rows], state["lined"][rows] = workload.fit(*arrays)

    def _renew(self, rows: NDArray[np.int64]) -> None:
        state = self.state
        if not len(rows):
            return
        told = state["lined"][rows]
        logs = np.log(state["seconds"][rows])
        if told.any():
            logs[told] -= np.log(self._expected(rows[told], state["work"][rows[told]]))
        middle = _median(logs, state["count"][rows])
        state["baseline"][rows] = middle
        spread = _MAD_TO_SIGMA * _median(np.abs(logs - middle[:, None]), state["count"][rows])
        state["sigma"][rows] = np.maximum(spread, _SIGMA_LEAST)

    def _opinion(self, excess: Float) -> SlowOpinion:
        state = self.state
        confirmed = state["rule"] >= 0
        middle, half = np.full(len(excess), np.nan), np.full(len(excess), np.nan)
        rows = np.flatnonzero(confirmed)
        if len(rows):
            after = state["after"][rows]
            middle[rows] = np.nanmedian(after, axis=1)
            count = np.isfinite(after).sum(axis=1)
            half[rows] = 1.96 * _MEDIAN_TO_MEAN * state["sigma"][rows] / np.sqrt(count)
        return SlowOpinion(
            excess=np.expm1(excess), suspect=(state["suspect_left"] > 0) & ~confirmed, confirmed=confirmed,
            rule=state["rule"].copy(), slowdown=np.expm1(middle), low=np.expm1(middle - half),
            high=np.expm1(middle + half), since=state["since"].copy(),
        )  # fmt: skip


def _median(values: Float, count: NDArray[np.int64]) -> Float:
    """Median of the first count[s] of each row; a full ring takes the quick way."""
    full = count == values.shape[1]
    out = np.empty(len(values))
    out[full] = np.median(values[full], axis=1)
    for size in np.unique(count[~full]):
        same = ~full & (count == size)
        out[same] = np.median(values[same, :size], axis=1)
    return out
