"""Training jobs for readers: one immutable row a job, made each tick from what its ranks tell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from gpuvigil_collector.saves.request import Saved, SaveRequest
from gpuvigil_detectors.training.jobs import (
    BACKWARD,
    DATA,
    FORWARD,
    GRADIENT,
    LOSS,
    OPTIMIZER,
    SECONDS,
    TOKENS,
    Job,
    Rank,
)

SERIES_JOBS_MAX: Final = 200
_NEWEST: Final = 20  # steps that the means are of
_PHASES: Final = {"data": DATA, "forward": FORWARD, "backward": BACKWARD, "optimizer": OPTIMIZER}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """One job. step: the newest that its lowest living rank ended; seconds, phases: means of its newest 20
    steps; tokens_per_second: of all ranks. None where the loop does not say. on_request: its owner takes
    requests to save. checkpoint: the newest that is whole; save: state of the newest request, "" for none.
    """

    job: str
    state: Literal["running", "ended"]
    launcher: str
    nodes: tuple[str, ...]
    ranks_up: int
    ranks: int
    restart: int
    began_ns: int
    step: int | None
    step_seconds: float | None
    phases: dict[str, float]
    tokens_per_second: float | None
    loss: float | None
    gradient_norm: float | None
    on_request: bool
    checkpoint: Saved | None
    save: str


def job_view(job: Job, checkpoint: Saved | None, request: SaveRequest | None) -> JobView:
    """Make a job's row."""
    living = job.living
    shown = living or [job.ranks[number] for number in sorted(job.ranks)]
    first = shown[0]
    seconds = _mean(first, SECONDS)
    tokens = [_mean(rank, TOKENS) for rank in shown]
    known = [count for count in tokens if count is not None]
    return JobView(
        job=job.name,
        state="running" if living else "ended",
        launcher=job.launcher,
        nodes=tuple(sorted({rank.node for rank in job.ranks.values()})),
        ranks_up=len(living),
        ranks=job.world_size,
        restart=job.attempt + job.restart,
        began_ns=job.began_ns,
        step=None if math.isnan(first.last_step) else int(first.last_step),
        step_seconds=seconds,
        phases={name: mean for name, place in _PHASES.items() if (mean := _mean(first, place))},
        tokens_per_second=sum(known) / seconds if known and seconds else None,
        loss=_newest(first, LOSS),
        gradient_norm=_newest(first, GRADIENT),
        on_request=bool(living) and all(rank.on_request == "save" for rank in living),
        checkpoint=checkpoint,
        save=request.state if request is not None else "",
    )


def _mean(rank: Rank, column: int) -> float | None:
    values = rank.steps[-_NEWEST:, column]
    present = values[np.isfinite(values)]
    return float(present.mean()) if len(present) else None


def _newest(rank: Rank, column: int) -> float | None:
    values = rank.steps[-_NEWEST:, column]
    present = values[np.isfinite(values)]
    return float(present[-1]) if len(present) else None


def families(jobs: Iterable[JobView]) -> Iterator[Metric]:
    """Yield the jobs' families: the newest 200 jobs, running ones first; `training_job` is the label."""
    shown = sorted(jobs, key=lambda job: (job.state != "running", -job.began_ns))[:SERIES_JOBS_MAX]
    yield _family(
        "gpuvigil_job_ranks_up", "Ranks whose process lives.", ((j, float(j.ranks_up)) for j in shown)
    )
    yield _family("gpuvigil_job_ranks", "Ranks the job should have.", ((j, float(j.ranks)) for j in shown))
    yield _family(
        "gpuvigil_job_restarts", "Attempts before this one.", ((j, float(j.restart)) for j in shown)
    )
    yield _family("gpuvigil_job_step", "Newest step that was ended.", ((j, j.step) for j in shown))
    yield _family(
        "gpuvigil_job_step_seconds", "Mean time of the newest 20 steps.", ((j, j.step_seconds) for j in shown)
    )
    yield _family(
        "gpuvigil_job_tokens_per_second", "Tokens a second of all ranks.",
        ((j, j.tokens_per_second) for j in shown),
    )  # fmt: skip
    yield _family("gpuvigil_job_loss", "Newest loss.", ((j, j.loss) for j in shown))
    yield _family(
        "gpuvigil_job_checkpoint_step", "Step of the newest whole checkpoint.",
        ((j, j.checkpoint.step if j.checkpoint else None) for j in shown),
    )  # fmt: skip
    yield _family(
        "gpuvigil_job_checkpoint_timestamp_seconds", "When the newest whole checkpoint was there.",
        ((j, j.checkpoint.at_ns / 1e9 if j.checkpoint else None) for j in shown),
    )  # fmt: skip
    phases = GaugeMetricFamily(
        "gpuvigil_job_phase_seconds", "Mean time in each phase of a step, newest 20 steps.",
        labels=["training_job", "phase"],
    )  # fmt: skip
    for job in shown:
        for name, seconds in job.phases.items():
            phases.add_metric([job.job, name], seconds)
    yield phases


def _family(name: str, text: str, rows: Iterable[tuple[JobView, float | int | None]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["training_job"])
    for job, value in rows:
        if value is not None:
            family.add_metric([job.job], value)
    return family
