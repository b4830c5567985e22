"""Who keeps whom waiting: a wait-for graph over ranks and the ops they are inside, and its sinks.

A rank is blocked in the oldest op that it has not completed: it waits for every member that has not enqueued
it or, when all have, for all inside it. (Where nobody reports the order of ops across groups, it is taken to
be blocked in each group.) What nothing leaves is the root: a rank with nothing pending that others
wait for is held on its host; a knot of ranks inside one op, with nobody missing, cannot be told apart
unless starts, hardware or missing reports do. A rank whose op its peers completed waits for nobody: its own
device or link holds it. Watchdog times play no part: the first to fire is a victim as often as not.
Source: methods.md section 5.7; the rule of the sink is that of deadlock detection (Holt 1972).
Blind spot: waits that are no collective of a watched group (a store barrier, a file lock) look like the host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gpuvigil_detectors.training.components import sinks
from gpuvigil_detectors.training.group_table import GroupTable, Pending, tables
from gpuvigil_detectors.training.progress import Kind, PeerOp, RankProgress

Place = tuple[str, int]
"""A group and a sequence in it; sequence 0 stands for sends and receives."""
OpNode = tuple[str, str, int, int]
Node = int | OpNode
"""A rank, or an op: ("absent" or "inside", group, sequence, 0) or ("pair", group, rank, rank)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A fault that a rank shows by itself."""

    kind: Kind
    place: Place


class WaitGraph:
    """The graph of one moment; `marks`, `edges` and `tables` are all that the judgement needs."""

    def __init__(
        self, ranks: Sequence[RankProgress], members: Mapping[str, tuple[int, ...]], *, silent: bool
    ) -> None:
        self.ranks = {rank.rank: rank for rank in sorted(ranks, key=lambda rank: rank.rank)}
        self.members = members
        self.tables = tables(self.ranks, members)
        self.unclear: dict[Place, frozenset[int]] = {}
        self.marks: dict[int, Mark] = {}
        self.reasons: dict[int, Counter[Place]] = {}
        self._silent = silent
        self._posted = Counter(
            (row.rank, op.group, op.peer, op.sends) for row in self.ranks.values() for op in row.peers
        )
        self._edges: dict[Node, set[Node]] = {rank: set() for rank in self.ranks}
        self._mark()
        for rank in list(self.ranks):
            self._waits(rank)

    @property
    def edges(self) -> dict[Node, frozenset[Node]]:
        """Every node with what it waits for."""
        return {node: frozenset(targets) for node, targets in self._edges.items()}

    def _mark(self) -> None:
        """Later marks give way to earlier ones: a death explains a lag, a lag explains no mismatch."""
        for rank, row in self.ranks.items():
            if row.state == "dead":
                self.marks[rank] = Mark(kind="dead", place=("", 0))
        for name, table in self.tables.items():
            for rank, sequence in table.laggards().items():
                if self.ranks[rank].state == "stopped":
                    continue  # it does not see that its ops ended
                self.marks.setdefault(rank, Mark(kind="device_or_transport", place=(name, sequence)))
            found = table.mismatch()
            if found is None:
                continue
            sequence, odd, holders = found
            for rank in odd:
                self.marks.setdefault(rank, Mark(kind="desync", place=(name, sequence)))
            if not odd:
                self.unclear[name, sequence] = holders

    def _waits(self, rank: int) -> None:
        if rank in self.marks:
            return
        pending = {name: table.pending[rank] for name, table in self.tables.items() if rank in table.pending}
        groups, peers = heads(pending, self.ranks[rank].peers)
        for name in groups:
            self._collective(rank, self.tables[name], pending[name])
        for op in peers:
            self._pair(rank, op)

    def _collective(self, rank: int, table: GroupTable, row: Pending) -> None:
        """Wait for those that have not enqueued it; else, inside it, for all that have not completed it."""
        # without an order, the newest op counts as well: its absentees may hold the host that all wait for
        for sequence in {row.first} if row.order is not None else {row.first, row.last}:
            behind = table.absent(sequence)
            if behind:
                self._enter(rank, ("absent", table.name, sequence, 0), behind, (table.name, sequence))
        if table.absent(row.first) or self.ranks[rank].state == "stopped":
            return  # a stopped rank would not see that its op ended
        inside = {other for other in set(table.members) - table.done(row.first) if self._counts(other)}
        self._enter(rank, ("inside", table.name, row.first, 0), inside, (table.name, row.first))

    def _pair(self, rank: int, op: PeerOp) -> None:
        """Wait for a peer that has posted nothing to match; else, or where nobody knows, the ends wait."""
        peer = self.ranks.get(op.peer)
        matched = self._posted[op.peer, op.group, rank, not op.sends]
        if peer is not None and peer.state != "silent" and not matched:
            self._edges[rank].add(op.peer)
            self.reasons.setdefault(op.peer, Counter())[op.group, 0] += 1
        elif self.ranks[rank].state != "stopped":
            ends = (rank, op.peer) if op.peer >= 0 else self.members.get(op.group, (rank,))
            inside = {other for other in ends if self._counts(other)}
            self._enter(rank, ("pair", op.group, min(ends), max(ends)), inside, (op.group, 0))

    def idle(self, rank: int) -> bool:
        """Tell whether a rank reports starts, has ops pending, and its device is in none of them."""
        peers = self.ranks[rank].peers
        pending = [table.pending[rank] for table in self.tables.values() if rank in table.pending]
        begun = [row.started for row in pending] + [op.started for op in peers]
        return bool(begun) and all(started is False for started in begun)

    def _enter(self, rank: int, node: OpNode, waits_for: Collection[int], place: Place) -> None:
        """Put a rank inside an op that waits for these ranks."""
        self._edges[rank].add(node)
        targets: set[Node] = self._edges.setdefault(node, set())
        targets.update(waits_for)
        if node[0] != "absent":
            targets.add(rank)
        for target in waits_for:
            if target != rank:
                self.reasons.setdefault(target, Counter())[place] += 1

    def _counts(self, rank: int) -> bool:
        """A rank without any report is waited for only where nothing else explains the wait."""
        known = self.ranks.get(rank)
        return known is not None and (self._silent or known.state != "silent")


def heads(pending: Mapping[str, Pending], peers: tuple[PeerOp, ...]) -> tuple[list[str], list[PeerOp]]:
    """What a rank is inside: what has started; else what it enqueued first; all, where neither is known."""
    started = [name for name, row in pending.items() if row.started]
    if started or any(op.started for op in peers):
        return started, [op for op in peers if op.started]
    orders = [row.order for row in pending.values()] + [op.order for op in peers]
    known = [order for order in orders if order is not None]
    if not known:
        return list(pending), list(peers)
    first = min(known)
    return (
        [name for name, row in pending.items() if row.order in (first, None)],
        [op for op in peers if op.order in (first, None)],
    )


def roots(graph: WaitGraph) -> list[frozenset[Node]]:
    """The sinks of the graph that somebody waits for, or that show a fault by themselves."""
    edges = graph.edges
    awaited = {target for node, targets in edges.items() for target in targets if target != node}
    found = []
    for part in sinks(edges):
        rank = next(iter(part))
        if len(part) > 1 or rank in awaited or rank in graph.marks:
            found.append(part)
    return sorted(found, key=lambda part: min(n for n in part if isinstance(n, int)))
