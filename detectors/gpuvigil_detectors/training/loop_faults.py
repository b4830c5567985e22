"""Faults that the loop shows of itself: numbers that are none, spikes, memory that only grows, long saves.

Each looks at what the ranks told and at nothing else; each returns one claim or None.
Sources: methods section 5, formula 8 (spikes); the rest is arithmetic on the job's own past.
Blind spots: a loss that drifts, memory that leaks less than a tenth in 400 steps.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpuvigil import layout
from gpuvigil_detectors.base import Evidence
from gpuvigil_detectors.training.claim import Claim, facts_of
from gpuvigil_detectors.training.jobs import (
    ALLOCATED,
    CHECKPOINT,
    FLAGS,
    GRADIENT,
    LOSS,
    PHASE,
    STEP,
    Job,
    Rank,
)

_NOT_FINITE: Final = layout.FLAG_LOSS | layout.FLAG_GRADIENT
_NEWEST: Final = 10
_PAST: Final = 100  # steps that a spike is compared with
_PAST_MIN: Final = 30
_SIGMAS: Final = 5.0
_SIGMA_LEAST: Final = 0.02  # of log(loss): less is rounding
_TIMES_MEDIAN: Final = 5.0
_SPIKES, _OF = 3, 5  # so many of the newest are news; one alone is training
_MAD_TO_SIGMA: Final = 1.4826
_BLOCKS: Final = 8
_BLOCK_STEPS: Final = 50
_GROWTH: Final = 1.10
_HOST_BLOCKS: Final = 6
_HOST_GROWTH_BYTES: Final = 1 << 30
_SAVE_FACTOR: Final = 3.0
_SAVE_FLOOR_S: Final = 300.0
_SAVE_UNKNOWN_S: Final = 1800.0

Float64 = NDArray[np.float64]


def not_finite(job: Job) -> Claim | None:
    """Say that a loss or a gradient norm of the newest steps was no number."""
    for rank in job.living:
        rows = rank.steps[-_NEWEST:]
        flags = np.nan_to_num(rows[:, FLAGS]).astype(np.int64) & _NOT_FINITE
        if not flags.any():
            continue
        place = int(np.flatnonzero(flags)[0])
        what = "loss" if flags[place] & layout.FLAG_LOSS else "gradient norm"
        end_ns = int(rank.end_ns[-_NEWEST:][place])
        return Claim(
            rule="not_finite", fault_class="loss_fault", severity="warning", start_ns=end_ns,
            sentence=f"the {what} of rank {rank.number} of job {job.name} was not finite in step "
            f"{rows[place, STEP]:.0f}",
            evidence=Evidence(since_ns=end_ns, facts=facts_of(job, rank)),
        )  # fmt: skip
    return None


def spikes(job: Job) -> Claim | None:
    """Say that loss or gradient norm jumped, in several of the newest steps: one spike alone is training."""
    ranks = job.living
    if not ranks:
        return None
    rows, ends = ranks[0].steps, ranks[0].end_ns
    for name, column, judge in (("loss", LOSS, _odd_losses), ("gradient norm", GRADIENT, _odd_norms)):
        told = np.flatnonzero(np.isfinite(rows[:, column]))[-_PAST - _OF :]
        values = rows[told, column].astype(np.float64)
        if len(values) < _PAST_MIN + _OF:
            continue
        odd = judge(values[:-_OF], values[-_OF:])
        if odd.sum() < _SPIKES:
            continue
        at = told[-_OF:][odd]
        usual = float(np.median(values[:-_OF]))
        return Claim(
            rule="spikes", fault_class="loss_fault", severity="warning", start_ns=int(ends[at[0]]),
            sentence=f"the {name} of job {job.name} jumped in {int(odd.sum())} of its newest {_OF} steps: "
            f"{rows[at[-1], column]:.4g} in step {rows[at[-1], STEP]:.0f}, usually {usual:.4g}",
            evidence=Evidence(
                observed=float(rows[at[-1], column]), expected=usual, since_ns=int(ends[at[0]]),
                facts=facts_of(job, None),
            ),
        )  # fmt: skip
    return None


def _odd_losses(past: Float64, newest: Float64) -> NDArray[np.bool_]:
    """Which are 5 robust sigmas above the past in the logarithm; a falling loss is no fault."""
    if not (past > 0).all():
        middle, spread = np.median(past), _MAD_TO_SIGMA * np.median(np.abs(past - np.median(past)))
        return np.asarray(newest > middle + _SIGMAS * max(float(spread), _SIGMA_LEAST * abs(float(middle))))
    logs = np.log(past)
    middle = np.median(logs)
    sigma = max(_MAD_TO_SIGMA * float(np.median(np.abs(logs - middle))), _SIGMA_LEAST)
    return np.asarray(np.log(np.maximum(newest, 1e-300)) > middle + _SIGMAS * sigma)


def _odd_norms(past: Float64, newest: Float64) -> NDArray[np.bool_]:
    return np.asarray(newest > _TIMES_MEDIAN * max(float(np.median(past)), 1e-30))


def memory_growth(job: Job) -> Claim | None:
    """Say that a rank's memory only grows: the device's over its steps, the host's over its minutes."""
    for rank in job.living:
        for what, blocks in (("device", _device_blocks(rank)), ("host", _host_blocks(rank))):
            if len(blocks) < 2 or not (np.diff(blocks) > 0).all():
                continue
            grown = float(blocks[-1] - blocks[0])
            if blocks[-1] < _GROWTH * blocks[0] or (what == "host" and grown < _HOST_GROWTH_BYTES):
                continue
            return Claim(
                rule=f"{what}_memory_grows", fault_class="memory_leak_host", severity="warning", rank=rank,
                start_ns=rank.since_ns,
                sentence=f"{what} memory of rank {rank.number} of job {job.name} only grows: "
                f"{blocks[0] / 2**30:.2f} to {blocks[-1] / 2**30:.2f} GiB",
                evidence=Evidence(
                    observed=float(blocks[-1]), expected=float(blocks[0]), unit="bytes",
                    since_ns=rank.since_ns, facts=facts_of(job, rank),
                ),
            )  # fmt: skip
    return None


def _device_blocks(rank: Rank) -> Float64:
    """Mean allocated bytes of the newest eight blocks of 50 steps; empty while there are fewer."""
    values = rank.steps[-_BLOCKS * _BLOCK_STEPS :, ALLOCATED]
    if len(values) < _BLOCKS * _BLOCK_STEPS or not np.isfinite(values).all():
        return np.empty(0)
    means: Float64 = values.astype(np.float64).reshape(_BLOCKS, _BLOCK_STEPS).mean(axis=1)
    return means


def _host_blocks(rank: Rank) -> Float64:
    """Mean resident bytes of each of six equal parts of the last ten minutes."""
    kept = np.array(rank.memory_past)
    size = len(kept) // _HOST_BLOCKS
    if size < 2 or len(kept) < rank.memory_past.maxlen:  # type: ignore[operator]
        return np.empty(0)
    means: Float64 = kept[-size * _HOST_BLOCKS :].reshape(_HOST_BLOCKS, size).mean(axis=1)
    return means


def long_save(job: Job, now_ns: int) -> Claim | None:
    """Say that a save takes far longer than the job's saves have taken."""
    held = [
        rank for rank in job.living
        if rank.phase == PHASE["checkpoint"] and math.isfinite(rank.step_age_s)
    ]  # fmt: skip
    if not held:
        return None
    seen = np.concatenate([rank.steps[:, CHECKPOINT] for rank in job.living])
    longest = float(np.nanmax(seen, initial=0.0)) if len(seen) else 0.0
    bound = max(_SAVE_FACTOR * longest, _SAVE_FLOOR_S) if longest > 0 else _SAVE_UNKNOWN_S
    worst = max(held, key=lambda rank: rank.step_age_s)
    if worst.step_age_s <= bound:
        return None
    since_ns = now_ns - int(worst.step_age_s * 1e9)
    who = f"rank {worst.number}" if len(held) < len(job.living) else "every rank"
    usual = f"its longest took {longest:.0f} s" if longest > 0 else "none has ended yet"
    return Claim(
        rule="save_does_not_end", fault_class="checkpoint_stall", severity="critical", start_ns=since_ns,
        rank=worst if len(held) < len(job.living) else None,
        sentence=f"{who} of job {job.name} has been saving for {worst.step_age_s:.0f} s; {usual}",
        evidence=Evidence(
            observed=worst.step_age_s, expected=bound, unit="seconds", since_ns=since_ns,
            facts=facts_of(job, worst),
        ),
    )  # fmt: skip
