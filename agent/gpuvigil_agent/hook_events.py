"""What becomes of ranks and launchers, as events for the collector."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from gpuvigil_agent.event import AgentEvent, EventKind
from gpuvigil_agent.hook_launchers import Parked
from gpuvigil_agent.hook_peer import Flight, Group, Save, Standstill
from gpuvigil_agent.hook_rank import Rank
from gpuvigil_agent.wire import FIELD_MAX
from gpuvigil_protos import entity

_STACK_MAX: Final = 256


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
    """Where a loop stands: its frames, and one field a process group (`_places`)."""
    fields = {"seconds": f"{word.seconds:.1f}", "stack": _joined(word.stack)}
    if word.timeout:
        fields["timeout"] = str(word.timeout)
    return _of_collectives(rank, fields | _places(word.groups), "stands still")


def flight(rank: Rank, word: Flight) -> AgentEvent:
    """A rank's own records: a field a group, with what it is for, and one of its last ops.

    Ops that do not fit are left out whole: the hook puts those first that tell most.
    """
    fields = {"source": "records", "number": str(word.number), "stack": _joined(word.stack)}
    for place, (key, told) in enumerate(_places(word.groups).items()):
        group = word.groups[place]
        fields[key] = f"{told}|{group.about.replace('|', '_')}"
        ops = list(group.ops)
        while len(",".join(ops)) > FIELD_MAX:
            ops.pop()
        fields[f"ops_{place}"] = ",".join(ops)
    return _of_collectives(rank, fields, f"told {len(word.groups)} process groups")


def held(rank: Rank, state: str, frames: list[str], threads: int, note: str) -> AgentEvent:
    """Where a process whose hook does not run is: the kernel's state of it, and its own stack or why none."""
    fields = {
        "source": "signal", "state": state, "stack": _joined(frames), "threads": str(threads or ""),
        "note": note,
    }  # fmt: skip
    said = "wrote its stacks" if frames else f"wrote no stacks: {note}"
    return _of_collectives(rank, {key: value for key, value in fields.items() if value}, said)


def _of_collectives(rank: Rank, fields: dict[str, str], said: str) -> AgentEvent:
    who = {"job": rank.identity.job, "rank": str(rank.identity.rank)}
    return AgentEvent(
        time_ns=time.time_ns(), kind="collectives", origin="job", entity=rank.entity,
        text=f"rank {rank.identity.rank} of job {rank.identity.job} {said}", fields=who | fields,
    )  # fmt: skip


def _joined(frames: list[str]) -> str:
    return " < ".join(frames)[:_STACK_MAX]


def _places(groups: Sequence[Group]) -> dict[str, str]:
    """One field a group, `name|enqueued|started|completed|ranks`: names are the job's, so no keys."""
    found = {}
    for place, group in enumerate(groups):
        numbers = (group.enqueued, group.started, group.completed)
        told = "|".join("" if number is None else str(number) for number in numbers)
        found[f"group_{place}"] = f"{group.group.replace('|', '_')}|{told}|{group.ranks}"
    return found


def parked(job: str, word: Parked) -> AgentEvent:
    """A launcher gave up."""
    return AgentEvent(
        time_ns=time.time_ns(), kind="hook", origin="job", entity=entity.job(job),
        text=f"job {job} is parked: {word.attempts} attempts brought no checkpoint newer than "
        f"step {word.step}",
        fields={"parked": str(word.attempts), "step": str(word.step), "job": job},
    )  # fmt: skip
