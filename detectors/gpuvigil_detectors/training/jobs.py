"""Jobs as their ranks tell them: who is there, where each is, and the newest steps of each.

Fed from one Snapshot a tick. Jobs are kept while a rank of theirs lives and an hour after; at most JOBS_MAX,
the oldest ended ones go first. All of it is one trust origin: what a job says of itself.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from gpuvigil import layout
from gpuvigil_detectors.base import FactEvent, Float32, Int64, Snapshot, StepRows
from gpuvigil_detectors.training import live_records, standing
from gpuvigil_detectors.training.standing import Held
from gpuvigil_protos.entity import job_and_rank_of

SECOND_NS: Final = 1_000_000_000
STEPS_KEPT: Final = 500
MEMORY_KEPT: Final = 60  # one reading in 10 s
JOBS_MAX: Final = 2000
_KEEP_NS: Final = 3600 * SECOND_NS
_RESTART_NS: Final = 60 * SECOND_NS
# what is kept of each step, in this order
COLUMNS: Final = (
    "rank_step", "rank_step_seconds", "rank_data_seconds", "rank_forward_seconds", "rank_backward_seconds",
    "rank_optimizer_seconds", "rank_tokens", "rank_loss", "rank_gradient_norm", "rank_step_flags",
    "rank_checkpoint_seconds", "rank_eval_seconds", "rank_cuda_allocated_bytes", "rank_steps_merged",
)  # fmt: skip
(
    STEP, SECONDS, DATA, FORWARD, BACKWARD, OPTIMIZER, TOKENS, LOSS, GRADIENT, FLAGS,
    CHECKPOINT, EVAL, ALLOCATED, MERGED,
) = range(len(COLUMNS))  # fmt: skip
_STATUS: Final = {
    "rank_heartbeat_age_seconds": "heartbeat_age_s", "rank_step_age_seconds": "step_age_s",
    "rank_phase": "phase", "rank_memory_bytes": "memory_bytes",
}  # fmt: skip
UNUSUAL: Final = layout.FLAG_FIRST | layout.FLAG_EVAL | layout.FLAG_CHECKPOINT
"""Flags of steps whose length says nothing of the others."""
PHASE: Final = {name: float(code) for code, name in enumerate(layout.PHASES)}
"""What `rank_phase` reads in each phase."""
_FRESH_S: Final = 5.0
_MEMORY_EVERY_NS: Final = 10 * SECOND_NS


@dataclass(slots=True, kw_only=True)
class Rank:
    """One rank of a job. ended: "" while it lives, else exit, died or replaced. Ages in s, NaN = not told.

    workload: its control group, as the node's kernel says, cut at the scheduler's unit (a pod, a Slurm job).
    memory_past: resident bytes, one reading in 10 s. end_ns: int64 [n]; steps: float32 [n, COLUMNS], oldest
    first, NaN = absent.
    """

    node: str
    number: int
    gpu: str = ""
    since_ns: int = 0
    restart: int = 0
    on_request: str = ""
    workload: str = ""
    ended: str = ""
    ended_ns: int = 0
    ended_phase: str = ""
    heartbeat_age_s: float = float("nan")
    step_age_s: float = float("nan")
    phase: float = float("nan")
    memory_bytes: float = float("nan")
    standing: standing.Standing | None = None
    held: Held | None = None
    records: live_records.Told | None = None
    memory_past: deque[float] = field(default_factory=lambda: deque(maxlen=MEMORY_KEPT))
    end_ns: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    steps: Float32 = field(default_factory=lambda: np.empty((0, len(COLUMNS)), np.float32))

    @property
    def last_step(self) -> float:
        """Number of the newest step that ended; NaN before the first."""
        return float(self.steps[-1, STEP]) if len(self.steps) else float("nan")


@dataclass(frozen=True, slots=True)
class SaveFault:
    """A save that did not become whole."""

    at_ns: int
    outcome: str
    step: str
    detail: str


@dataclass(slots=True, kw_only=True)
class Job:
    """One job: its ranks by number, and how many there should be.

    attempt counts the launcher's (`gpuvigil run`), restart those in place within one (torchrun).
    """

    name: str
    world_size: int = 1
    launcher: str = ""
    attempt: int = 0
    restart: int = 0
    began_ns: int = 0
    seen_ns: int = 0
    parked_ns: int = 0
    parked: str = ""
    restart_asked_ns: int = 0
    save_fault: SaveFault | None = None
    ranks: dict[int, Rank] = field(default_factory=dict)

    @property
    def living(self) -> list[Rank]:
        """Ranks whose process lives, by number."""
        return [self.ranks[number] for number in sorted(self.ranks) if not self.ranks[number].ended]

    def entity_of(self, rank: Rank) -> str:
        """Full entity name of one rank."""
        return f"{rank.node}/rank:{self.name}/{rank.number}"

    def ends_as_asked(self, time_ns: int) -> bool:
        """Whether a restart was asked for so shortly before that what happens then is its doing."""
        return 0 <= time_ns - self.restart_asked_ns <= _RESTART_NS

    @property
    def entity(self) -> str:
        """Full entity name of the job: it is said of the node of its lowest rank."""
        first = self.ranks[min(self.ranks)]
        return f"{first.node}/job:{self.name}"


class Jobs:
    """All jobs by name. One thread calls `take`."""

    def __init__(self) -> None:
        self.by_name: dict[str, Job] = {}
        self._memory_ns = 0

    def take(self, snapshot: Snapshot) -> None:
        """Take in what one snapshot tells."""
        for event in snapshot.events:
            if event.kind == "rank_up":
                self._up(event)
            elif event.kind == "rank_down":
                self._down(event)
            elif event.kind == "collectives":
                self._stand(event)
            elif event.kind == "checkpoint":
                self._save(event)
            elif event.kind == "hook" and "parked" in event.fields:
                self._park(event)
        for rows in snapshot.steps:
            self._steps(rows, snapshot.now_ns)
        self._status(snapshot)
        self._forget(snapshot.now_ns)

    def _up(self, event: FactEvent) -> None:
        where = job_and_rank_of(event.entity)
        if where is None:
            return
        name, number = where
        job = self.by_name.setdefault(name, Job(name=name, began_ns=event.time_ns))
        attempt, restart = _count(event.fields.get("attempt")), _count(event.fields.get("restart"))
        old = job.ranks.get(number)
        if (attempt, restart) > (job.attempt, job.restart) or (
            old is not None and not job.living
        ):  # a new attempt of the whole job
            job.attempt, job.restart, job.began_ns = attempt, restart, event.time_ns
            job.restart_asked_ns = 0
            for rank in job.ranks.values():  # one that still lives is an orphan of the attempt before
                rank.ended = rank.ended or "replaced"
            job.ranks = {n: rank for n, rank in job.ranks.items() if not rank.ended}
        job.parked, job.save_fault = "", None
        job.world_size = max(1, _count(event.fields.get("world_size")))
        job.launcher = event.fields.get("launcher", "")
        job.seen_ns = event.time_ns
        job.ranks[number] = Rank(
            node=event.node, number=number, gpu=event.fields.get("gpu", ""), since_ns=event.time_ns,
            restart=restart, on_request=event.fields.get("on_request", ""),
            workload=event.fields.get("workload", ""),
        )  # fmt: skip

    def _down(self, event: FactEvent) -> None:
        known = self._find(event.node, event.entity)
        if known is None:
            return
        rank = known[1]
        if rank.since_ns <= event.time_ns and not rank.ended:
            rank.ended = event.fields.get("reason", "died")
            rank.ended_ns, rank.ended_phase = event.time_ns, event.fields.get("phase", "")

    def _stand(self, event: FactEvent) -> None:
        """Take what a rank says while it stands, or what was gathered of it when asked."""
        known = self._find(event.node, event.entity)
        if known is None:
            return
        rank = known[1]
        rank.standing = standing.take(rank.standing, event)
        rank.held = standing.read_held(event) or rank.held
        if event.fields.get("source") == "records":
            rank.records = live_records.read(event) or rank.records

    def _save(self, event: FactEvent) -> None:
        """Note a save that did not become whole, until one does: rank 0's word, else whoever tells."""
        known = self._find(event.node, event.entity)
        if known is None:
            return
        job, rank = known
        outcome = event.fields.get("outcome", "")
        if outcome == "saved" and rank.number == 0:
            job.save_fault = None
        elif outcome != "saved" and (job.save_fault is None or rank.number == 0):
            fields = event.fields
            words = (outcome[:20], fields.get("step", "?")[:20], fields.get("detail", "")[:300])
            job.save_fault = SaveFault(event.time_ns, *words)

    def _park(self, event: FactEvent) -> None:
        job = self.by_name.get(event.entity.partition(":")[2])
        if job is not None and event.node in {rank.node for rank in job.ranks.values()}:
            job.parked_ns, job.parked = event.time_ns, event.text

    def _find(self, node: str, entity: str) -> tuple[Job, Rank] | None:
        """The rank that an entity names, with its job, where it is known and on that node."""
        name, number = job_and_rank_of(entity) or ("", -1)
        job = self.by_name.get(name)
        rank = job.ranks.get(number) if job is not None else None
        return (job, rank) if job is not None and rank is not None and rank.node == node else None

    def _steps(self, rows: StepRows, now_ns: int) -> None:
        """Append one rank's steps; a rank that was never announced (its event is on its way) is made."""
        where = job_and_rank_of(rows.entity)
        if where is None:
            return
        job = self.by_name.setdefault(where[0], Job(name=where[0], began_ns=now_ns))
        rank = job.ranks.get(where[1])
        if rank is None or rank.node != rows.node:
            rank = job.ranks[where[1]] = Rank(node=rows.node, number=where[1], since_ns=now_ns)
        job.seen_ns = now_ns
        new = np.full((len(rows.end_ns), len(COLUMNS)), np.nan, np.float32)
        for place, metric in enumerate(COLUMNS):
            if metric in rows.metrics:
                new[:, place] = rows.values[:, rows.metrics.index(metric)]
        rank.steps = np.concatenate([rank.steps, new])[-STEPS_KEPT:]
        rank.end_ns = np.concatenate([rank.end_ns, rows.end_ns])[-STEPS_KEPT:]

    def _status(self, snapshot: Snapshot) -> None:
        if not self.by_name:
            return
        for metric, name in _STATUS.items():
            latest = snapshot.latest(metric)
            for entity, value, age in zip(latest.entities, latest.values, latest.age_s, strict=True):
                node, _, local = entity.partition("/")
                known = self._find(node, local)
                if known is not None and not known[1].ended:
                    setattr(known[1], name, float(value) if age <= _FRESH_S else float("nan"))
        if snapshot.now_ns - self._memory_ns >= _MEMORY_EVERY_NS:
            self._memory_ns = snapshot.now_ns
            for job in self.by_name.values():
                for rank in job.living:
                    if not math.isnan(rank.memory_bytes):
                        rank.memory_past.append(rank.memory_bytes)

    def _forget(self, now_ns: int) -> None:
        for job in list(self.by_name.values()):
            ended_ns = max((rank.ended_ns for rank in job.ranks.values()), default=0)
            if not job.living and now_ns - max(ended_ns, job.seen_ns) > _KEEP_NS:
                del self.by_name[job.name]
        while len(self.by_name) > JOBS_MAX:
            oldest = min(self.by_name.values(), key=lambda job: (bool(job.living), job.seen_ns))
            del self.by_name[oldest.name]


def _count(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() and len(text) < 10 else 0
