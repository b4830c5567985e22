"""What a job in Slurm is: where it runs, and why it must not be stopped.

A job's owner allows more, and names a checkpoint signal, in the job's comment:
`#SBATCH --comment="gpuvigil:movable gpuvigil:signal=USR1@30"`. A comment speaks for its own job alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from gpuvigil_collector.slurm import gres, hostlist, records

ON_NODES: Final = frozenset(
    {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING"}
)
ENDED: Final = frozenset(
    {
        "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE",
        "OUT_OF_MEMORY", "OOM", "REVOKED",
    }
)  # fmt: skip
MOVABLE: Final = "gpuvigil:movable"
_SIGNAL: Final = re.compile(r"(?:^|\s)gpuvigil:signal=(USR1|USR2|TERM|HUP|INT)@(\d{1,3})(?=\s|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSignal:
    """The signal upon which the batch script saves, and the seconds that it then needs."""

    name: str
    wait_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmJob:
    """One job. job: the name that its hook reports (`7`, or `7_2` for a task of an array).

    gpu_indices: node -> the GPUs that Slurm gave it there. refusals: words of action.JobState.
    """

    job: str
    id: int
    user: str
    state: frozenset[str]
    reason: str
    nodes: tuple[str, ...]
    gpus: int
    gpu_indices: Mapping[str, tuple[int, ...]]
    restarts: int
    starts_s: int
    partition: str
    required_nodes: tuple[str, ...]
    excluded_nodes: tuple[str, ...]
    signal: CheckpointSignal | None
    refusals: tuple[str, ...]

    @property
    def on_nodes(self) -> bool:
        """Whether it occupies nodes now."""
        return bool(self.state & ON_NODES) and bool(self.nodes)

    @property
    def ended(self) -> bool:
        """Whether it is over, for good."""
        return bool(self.state & ENDED) and "COMPLETING" not in self.state

    @property
    def token(self) -> str:
        """Tells this run of the job from any other."""
        return f"restarts={self.restarts}"


def read_all(found: Sequence[records.JobRecord], opt_in_all: bool = False) -> tuple[SlurmJob, ...]:
    """Make jobs of what Slurm says. opt_in_all: a job is moved only where its comment says so.

    Raises NonsenseError for host lists that are none.
    """
    first = tuple(_read(record, opt_in_all) for record in found)
    users: dict[str, set[str]] = {}
    for job in first:
        if job.on_nodes:
            for node in job.nodes:
                users.setdefault(node, set()).add(job.user)
    return tuple(_beside_others(job, users) for job in first)


def _beside_others(job: SlurmJob, users: Mapping[str, set[str]]) -> SlurmJob:
    """A job on a node where another user's job runs is left: the node is drained, and empties by itself."""
    if not job.on_nodes or all(users[node] == {job.user} for node in job.nodes):
        return job
    return replace(job, refusals=(*job.refusals, "other_users"))


def _read(record: records.JobRecord, opt_in_all: bool) -> SlurmJob:
    nodes = _hosts(record.nodes)
    signal = _SIGNAL.search(record.comment)
    array, task = records.number(record.array_job_id), records.optional(record.array_task_id)
    return SlurmJob(
        job=f"{array}_{'[]' if task is None else task}" if array else str(record.job_id),
        id=record.job_id,
        user=records.clean(record.user_name) or str(record.user_id),
        state=records.words(record.job_state),
        reason=records.clean(record.state_reason),
        nodes=nodes,
        gpus=sum(map(gres.count, record.gres_detail)),
        gpu_indices={
            node: gres.indices(text) for node, text in zip(nodes, record.gres_detail, strict=False) if text
        },
        restarts=record.restart_cnt,
        starts_s=records.number(record.start_time),
        partition=records.clean(record.partition),
        required_nodes=_hosts(record.required_nodes),
        excluded_nodes=_hosts(record.excluded_nodes),
        signal=CheckpointSignal(name=signal[1], wait_s=int(signal[2])) if signal else None,
        refusals=tuple(_refusals(record, opt_in_all)),
    )


def _refusals(record: records.JobRecord, opt_in_all: bool) -> Iterable[str]:
    movable = MOVABLE in record.comment.split()
    if not record.batch_flag:
        yield "interactive"
    if not record.requeue:
        yield "no_requeue"
    if records.number(record.array_job_id) and not movable:
        yield "array"
    if records.number(record.het_job_id) and not movable:
        yield "het"
    if opt_in_all and not movable:
        yield "not_opted_in"


def _hosts(text: str) -> tuple[str, ...]:
    try:
        return hostlist.expand(text)
    except hostlist.BadHostlistError as error:
        raise records.NonsenseError(str(error)) from error
