"""What becomes of ranks and launchers, as events for the collector."""

from __future__ import annotations

import time
from typing import Final

from gpuvigil_agent.event import AgentEvent, EventKind
from gpuvigil_agent.hook_launchers import Parked
from gpuvigil_agent.hook_peer import Save, Standstill
from gpuvigil_agent.hook_rank import Rank
from gpuvigil_protos import entity

_FIELD_MAX: Final = 256


def life(kind: EventKind, rank: Rank, fields: dict[str, str]) -> AgentEvent:
    """A rank registered, or ended."""
    verb = "registered" if kind == "rank_up" else f"ended ({fields['reason']}) in step {fields['step']}"
    return AgentEvent(
        time_ns=time.time_ns(), kind=kind, origin="job", entity=rank.entity,
        text=f"rank {rank.identity.rank} of job {rank.identity.job} {verb}", fields=fields,
    )  # fmt: skip


def saved(rank: Rank, word: Save) -> AgentEvent:
    """How a save went, under the name that the rank registered with."""
    fields = {
        "outcome": word.outcome, "step": str(word.step), "path": word.path, "bytes": str(word.size),
        "seconds": f"{word.seconds:.3f}", "detail": word.detail, "request": word.request,
        "job": rank.identity.job, "rank": str(rank.identity.rank), "generation": str(word.generation),
    }  # fmt: skip
    return AgentEvent(
        time_ns=time.time_ns(), kind="checkpoint", origin="job", entity=rank.entity,
        text=f"rank {rank.identity.rank} of job {rank.identity.job}: checkpoint of step {word.step} "
        f"{word.outcome}",
        fields={key: value for key, value in fields.items() if value},
    )  # fmt: skip


def standstill(rank: Rank, word: Standstill) -> AgentEvent:
    """Where a loop stands: its frames, and one field a group, `name|enqueued|started|completed|ranks`.

    Names of groups are the job's own text, so they are values and no keys.
    """
    fields = {"job": rank.identity.job, "rank": str(rank.identity.rank), "seconds": f"{word.seconds:.1f}"}
    fields["stack"] = " < ".join(word.stack)[:_FIELD_MAX]
    for place, group in enumerate(word.groups):
        numbers = (group.enqueued, group.started, group.completed)
        told = "|".join("" if number is None else str(number) for number in numbers)
        fields[f"group_{place}"] = f"{group.group.replace('|', '_')}|{told}|{group.ranks}"
    return AgentEvent(
        time_ns=time.time_ns(), kind="collectives", origin="job", entity=rank.entity,
        text=f"rank {rank.identity.rank} of job {rank.identity.job} stands still", fields=fields,
    )  # fmt: skip


def parked(job: str, word: Parked) -> AgentEvent:
    """A launcher gave up."""
    return AgentEvent(
        time_ns=time.time_ns(), kind="hook", origin="job", entity=entity.job(job),
        text=f"job {job} is parked: {word.attempts} attempts brought no checkpoint newer than "
        f"step {word.step}",
        fields={"parked": str(word.attempts), "step": str(word.step), "job": job},
    )  # fmt: skip
