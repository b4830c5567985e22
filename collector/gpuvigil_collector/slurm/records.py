"""The JSON of `sinfo`, `scontrol` and `squeue` as typed records; anything else is refused with its place.

JSON, because the text of `scontrol show` can be forged: a job named `x JobState=FAILED` writes its own field.
22.05 writes states as words and numbers bare; later versions write lists and {"set", "infinite", "number"}.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from gpuvigil_protos.text import printable

TEXT_MAX: Final = 300
NODES_MAX: Final = 50_000
JOBS_MAX: Final = 500_000


class NonsenseError(Exception):
    """Slurm's programs answered something that is no answer."""


class _Number(msgspec.Struct):
    number: int
    set: bool = True
    infinite: bool = False


Number = int | _Number | None


class NodeRecord(msgspec.Struct):
    """One node as Slurm tells it."""

    name: str
    hostname: str
    address: str
    state: str | list[str]
    partitions: list[str]
    gres: str
    reason: str
    reason_changed_at: Number
    reason_set_by_user: str | None
    state_flags: list[str] = []


class JobRecord(msgspec.Struct):
    """One job, or one task of an array, as Slurm tells it."""

    job_id: int
    job_state: str | list[str]
    user_name: str
    user_id: int
    nodes: str
    partition: str
    batch_flag: bool | int
    requeue: bool
    restart_cnt: int
    start_time: Number
    state_reason: str
    array_job_id: Number
    array_task_id: Number
    het_job_id: Number
    comment: str
    required_nodes: str
    excluded_nodes: str
    gres_detail: list[str]


class _Nodes(msgspec.Struct):
    nodes: list[NodeRecord]
    errors: list[msgspec.Raw] = []


class _Jobs(msgspec.Struct):
    jobs: list[JobRecord]
    errors: list[msgspec.Raw] = []


_Reply = TypeVar("_Reply", _Nodes, _Jobs)


def nodes(raw: str) -> list[NodeRecord]:
    """Return all nodes. Raises NonsenseError."""
    found = _decoded(raw, _Nodes).nodes
    if not found or len(found) > NODES_MAX or len({node.name for node in found}) != len(found):
        raise NonsenseError(f"expected 1 to {NODES_MAX} nodes of different names, got {len(found)}")
    return found


def jobs(raw: str) -> list[JobRecord]:
    """Return all jobs. Raises NonsenseError."""
    found = _decoded(raw, _Jobs).jobs
    if len(found) > JOBS_MAX or len({job.job_id for job in found}) != len(found):
        raise NonsenseError(f"expected at most {JOBS_MAX} jobs of different ids, got {len(found)}")
    return found


def _decoded(raw: str, shape: type[_Reply]) -> _Reply:
    try:
        reply = msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise NonsenseError(clean(str(error))) from error
    if reply.errors:
        raise NonsenseError(clean(bytes(reply.errors[0]).decode("utf-8", "replace")))
    return reply


def number(value: Number) -> int:
    """Return a number; 0 where none is set."""
    return optional(value) or 0


def optional(value: Number) -> int | None:
    """Return a number; None where none is set."""
    if isinstance(value, _Number):
        return value.number if value.set and not value.infinite else None
    return value


def words(state: str | list[str]) -> frozenset[str]:
    """Return the words of a state in capitals."""
    return frozenset(word.upper() for word in ([state] if isinstance(state, str) else state))


def clean(text: str) -> str:
    """Return text from outside, bounded and printable."""
    cut = text[:TEXT_MAX]
    return printable(cut)
