"""The nouns of collective progress: how far each rank came in each process group, and what it waits in.

Sequence numbers count a group's collectives from 1 on. A number that nobody reports is None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal[
    "host", "launch", "device_or_transport", "desync", "stopped", "dead", "silent", "unknown",
]  # fmt: skip
"""What kept the others waiting.

host: never enqueued the collective. launch: enqueued, not started on the device. device_or_transport: started
or completed by others, not completed here. desync: another op, size or dtype at the same place, or another
order. stopped: the process lives and its heartbeat does not (interpreter lock held, or stopped by a signal).
dead: the process ended. silent: no word at all (no dump, no report), so dead, stopped or cut off. unknown:
cannot be told apart.
"""

State = Literal["alive", "stopped", "dead", "silent"]

# Ops that every member must have begun before any member can have completed them: a reduction or an exchange
# needs data from all. The others (broadcast, reduce, scatter, gather) may end early at one end.
SYMMETRIC: Final = frozenset(
    {
        "all_reduce", "allreduce", "all_gather", "allgather", "_all_gather_base", "_allgather_base",
        "reduce_scatter", "_reduce_scatter_base", "all_to_all", "alltoall", "alltoall_base", "barrier",
        "all_reduce_barrier", "all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """What a rank enqueued at one sequence number. size: elements, None where members may differ in it."""

    name: str = ""
    size: int | None = None
    dtype: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupProgress:
    """One rank's place in one process group.

    ops: sequence -> op, of those not completed; may be empty. order: the place of the first op that is not
    completed among all that the rank enqueued, in any group; None when the rank's program order is unknown.
    """

    group: str
    enqueued: int | None
    started: int | None = None
    completed: int | None = None
    ops: Mapping[int, Op] = field(default_factory=dict)
    order: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOp:
    """A pending send to, or receive from, one other rank (global number; -1 where nobody says which)."""

    group: str
    peer: int
    sends: bool
    order: int | None = None
    started: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankProgress:
    """All that is known of one rank. hardware: a device or network fault was reported for it from outside."""

    rank: int
    groups: Mapping[str, GroupProgress] = field(default_factory=dict)
    peers: tuple[PeerOp, ...] = ()
    state: State = "alive"
    hardware: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """Who keeps the job waiting.

    culprits: ranks, ascending, empty when none can be named. candidates: among them the culprit must be, when
    none is named. group: where the others wait. waiting: how many ranks wait, directly or not. sentence: the
    numbers.
    """

    culprits: tuple[int, ...]
    candidates: tuple[int, ...]
    kind: Kind
    group: str
    waiting: int
    sentence: str
