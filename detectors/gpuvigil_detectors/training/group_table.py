"""One process group's members side by side: who is pending, who is behind, who does another thing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpuvigil_detectors.training.progress import SYMMETRIC, GroupProgress, Op, RankProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """The collectives that a rank has enqueued and not completed: first to last sequence, both included."""

    first: int
    last: int
    started: bool | None
    order: int | None


class GroupTable:
    """All that the members of one group reported of it."""

    def __init__(self, name: str, members: tuple[int, ...], ranks: Mapping[int, RankProgress]) -> None:
        self.name = name
        self.members = members
        rows = {r: ranks[r].groups[name] for r in members if r in ranks and name in ranks[r].groups}
        self.rows: dict[int, GroupProgress] = rows
        known = [row.enqueued for row in rows.values() if row.enqueued is not None]
        self._least = min(known, default=0)
        self.times_starts = any(row.started is not None for row in rows.values())
        pending = {rank: self._pending(row) for rank, row in rows.items()}
        self.pending: dict[int, Pending] = {rank: row for rank, row in pending.items() if row is not None}
        self._absent: dict[int, frozenset[int]] = {}

    def _pending(self, row: GroupProgress) -> Pending | None:
        """Return None when nothing is known to be pending.

        Without completions reported, an op that a member has not even
        enqueued cannot be complete, and no more can be said.
        """
        if row.enqueued is None:
            return None
        completed = self._least if row.completed is None else row.completed
        if row.enqueued <= completed:
            return None
        first = completed + 1
        started = None if row.started is None else row.started >= first
        return Pending(first=first, last=row.enqueued, started=started, order=row.order)

    def absent(self, sequence: int) -> frozenset[int]:
        """Members known not to have enqueued `sequence`."""
        if sequence not in self._absent:
            behind = (
                r for r, row in self.rows.items() if row.enqueued is not None and row.enqueued < sequence
            )
            self._absent[sequence] = frozenset(behind)
        return self._absent[sequence]

    def done(self, sequence: int) -> frozenset[int]:
        """Members known to have completed `sequence`."""
        return frozenset(
            r for r, row in self.rows.items() if row.completed is not None and row.completed >= sequence
        )

    def op(self, sequence: int) -> Op:
        """What most members enqueued at `sequence`; a nameless op where nobody says."""
        said = Counter(row.ops[sequence] for row in self.rows.values() if sequence in row.ops)
        return max(said, key=lambda op: (said[op], op.name, op.dtype), default=Op())

    def laggards(self) -> dict[int, int]:
        """Ranks whose first pending op others have completed -> its sequence.

        Such an op had all it needed from this rank, so what is missing happened on its device or its link.
        Not for ops that one end may finish alone while a member has not enqueued them, and not when most
        members lag: then the few that finished are the odd ones, and nobody can be told apart.
        """
        found = {}
        for rank, row in self.pending.items():
            done = self.done(row.first)
            if not done or 2 * (len(self.rows) - len(done)) > len(self.rows):
                continue
            if self.op(row.first).name in SYMMETRIC or not self.absent(row.first):
                found[rank] = row.first
        return found

    def mismatch(self) -> tuple[int, frozenset[int], frozenset[int]] | None:
        """The first sequence at which members enqueued different ops: (sequence, odd ones, all holders).

        The odd ones are those unlike the majority; empty when there is none (every rank runs the same
        program, so the majority is the program). Size and dtype count only where ranks must agree in them.
        """
        for sequence in sorted({s for row in self.rows.values() for s in row.ops}):
            said = {rank: row.ops[sequence] for rank, row in self.rows.items() if sequence in row.ops}
            counts = Counter(said.values())
            common = max(counts, key=lambda op: (counts[op], op.name, op.dtype, op.size or 0))
            odd = frozenset(rank for rank, op in said.items() if _differ(op, common))
            if odd:
                clear = 2 * len(odd) < len(said) and 2 * counts[common] >= len(said)
                return sequence, odd if clear else frozenset(), frozenset(said)
        return None


def _differ(one: Op, other: Op) -> bool:
    """Do two ops contradict each other? What is not known contradicts nothing."""
    return (
        (bool(one.name and other.name) and one.name != other.name)
        or (one.size is not None and other.size is not None and one.size != other.size)
        or (bool(one.dtype and other.dtype) and one.dtype != other.dtype)
    )


def tables(
    ranks: Mapping[int, RankProgress], members: Mapping[str, tuple[int, ...]]
) -> dict[str, GroupTable]:
    """One table a group that any rank reported, in the order of their names."""
    named: Iterable[str] = {name for rank in ranks.values() for name in rank.groups}
    return {name: GroupTable(name, members.get(name, _seen(name, ranks)), ranks) for name in sorted(named)}


def _seen(name: str, ranks: Mapping[int, RankProgress]) -> tuple[int, ...]:
    return tuple(sorted(rank for rank, row in ranks.items() if name in row.groups))
