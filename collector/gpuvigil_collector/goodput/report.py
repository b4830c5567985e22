"""A job's account as a row for the API, the CLI and the metrics endpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from gpuvigil_collector.goodput import formulas
from gpuvigil_collector.goodput.account import Account, Loss
from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_detectors.base import SEVERITIES
from gpuvigil_detectors.training.jobs import SECOND_NS

SERIES_JOBS_MAX: Final = 200
_NEAR_NS: Final = 120 * SECOND_NS


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodputView:
    """One job's row; the numbers are those of one tick. Times are seconds, None is not known yet."""

    job: str
    state: str
    began_ns: int
    ranks: int
    nodes: int
    attempts: int
    step: int
    wall: float
    buckets: dict[str, float]
    goodput: float | None
    goodput_lately: float | None
    losses: tuple[dict[str, Any], ...]
    gpu_hours_lost: float
    checkpoint: dict[str, float | int | None]


def goodput_view(account: Account, now_ns: int, incidents: Sequence[Incident]) -> GoodputView:
    """Make a job's row; each loss names its cause among its job's incidents."""
    losses = tuple(_loss(loss, cause_of(loss, incidents)) for loss in account.losses)
    return GoodputView(
        job=account.job, state=account.state, began_ns=account.began_ns, ranks=account.ranks,
        nodes=account.nodes, attempts=account.attempts, step=account.step, wall=account.wall,
        buckets=dict(account.seconds), goodput=account.goodput,
        goodput_lately=account.goodput_lately(now_ns), losses=losses,
        gpu_hours_lost=sum(loss["gpu_hours"] for loss in losses), checkpoint=_checkpoint(account),
    )  # fmt: skip


def cause_of(loss: Loss, incidents: Iterable[Incident]) -> Incident | None:
    """Return the gravest incident that was opened near the loss, of equals the nearest; drills never.

    Gravity goes first: a job that limps before it stops has a slowness opened nearer to its last step
    than the hang that ended it.
    """

    def order(incident: Incident) -> tuple[int, int]:
        return -SEVERITIES.index(incident.severity), abs(incident.opened_ns - loss.at_ns)

    near = (i for i in incidents if not i.synthetic and abs(i.opened_ns - loss.at_ns) <= _NEAR_NS)
    return min(near, key=order, default=None)


def _loss(loss: Loss, cause: Incident | None) -> dict[str, Any]:
    return {
        "at_ns": loss.at_ns, "step": loss.step, "seconds": loss.seconds, "cost": dict(loss.cost),
        "gpu_hours": loss.seconds * loss.ranks / 3600, "incident": cause.id if cause else "",
        "class": cause.fault_class if cause else "",
    }  # fmt: skip


def _checkpoint(account: Account) -> dict[str, float | int | None]:
    """What a save costs, how often it is done, how often it should be, and the ETTR of both."""
    found: dict[str, float | int | None] = {
        "saves": account.saves, "write_seconds": None, "interval_seconds": None,
        "failures_per_node_day": None, "young_seconds": None, "best_seconds": None,
        "ettr_now": None, "ettr_best": None,
    }  # fmt: skip
    node_days = account.nodes * account.wall / formulas.DAY_S
    each = formulas.failures_per_node_day(len(account.losses), node_days)
    found["failures_per_node_day"] = each
    if not account.saves or account.save_seconds <= 0:
        return found
    rate = each * account.nodes / formulas.DAY_S
    write = account.save_seconds / account.saves
    interval = account.seconds["useful"] / account.saves
    failures = max(1, len(account.losses))
    down = (account.seconds["detect"] + account.seconds["queue"]) / failures
    restart = account.seconds["restart"] / failures
    best = formulas.best_interval(rate=rate, write=write)
    known = {"rate": rate, "write": write, "down": down, "restart": restart}
    found |= {
        "write_seconds": write, "interval_seconds": interval,
        "young_seconds": formulas.young_interval(rate=rate, write=write), "best_seconds": best,
        "ettr_now": formulas.ettr(interval=interval, **known) if interval > 0 else None,
        "ettr_best": formulas.ettr(interval=best, **known),
    }  # fmt: skip
    return found


def families(rows: Iterable[GoodputView]) -> Iterator[Metric]:
    """Yield the jobs' families: the newest 200 jobs; `training_job` is the label."""
    shown = sorted(rows, key=lambda row: (row.state == "ended", -row.began_ns))[:SERIES_JOBS_MAX]
    ratio = GaugeMetricFamily(
        "gpuvigil_job_goodput_ratio", "Useful share of the job's time: all of it, and its last hour.",
        labels=["training_job", "over"],
    )  # fmt: skip
    time = CounterMetricFamily(
        "gpuvigil_job_time_seconds", "What the job's wall time went into.", labels=["training_job", "bucket"]
    )
    lost = CounterMetricFamily(
        "gpuvigil_job_lost_gpu_seconds", "GPU time lost by failures.", labels=["training_job"]
    )
    best = GaugeMetricFamily(
        "gpuvigil_job_checkpoint_interval_seconds",
        "Useful time between checkpoints: as the job does it, and as its failure rate and write cost ask.",
        labels=["training_job", "which"],
    )
    for row in shown:
        for over, value in (("all", row.goodput), ("hour", row.goodput_lately)):
            if value is not None:
                ratio.add_metric([row.job, over], value)
        for bucket, seconds in row.buckets.items():
            time.add_metric([row.job, bucket], seconds)
        lost.add_metric([row.job], 3600 * row.gpu_hours_lost)
        for which, key in (("now", "interval_seconds"), ("recommended", "best_seconds")):
            if (value := row.checkpoint[key]) is not None:
                best.add_metric([row.job, which], value)
    yield from (ratio, time, lost, best)
