"""From the roots of the wait-for graph to culprits, kind and one sentence with the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gpuvigil_detectors.training.progress import Blame, Kind, RankProgress
from gpuvigil_detectors.training.waits import Mark, Node, OpNode, Place, WaitGraph, roots
from gpuvigil_detectors.training.wording import clause, names

# one word for culprits of several kinds: what explains the others comes first
_ORDER: Final[tuple[Kind, ...]] = (
    "dead", "stopped", "device_or_transport", "desync", "launch", "host", "silent", "unknown",
)  # fmt: skip
_CLAUSES_MAX: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One root resolved: marks of its culprits, or candidates when nobody can be named."""

    culprits: Mapping[int, Mark]
    candidates: frozenset[int] = frozenset()
    kind: Kind = "unknown"
    place: Place = ("", 0)


def judge(ranks: Sequence[RankProgress], members: Mapping[str, tuple[int, ...]]) -> Blame:
    """Name who keeps the others waiting, from one moment of a job that has stalled.

    ranks: one row a rank, `silent` rows for members without any report. members: group -> global ranks in
    the group's own order. The order of `ranks` and the numbers of the ranks are irrelevant. That the job has
    stalled is the caller's claim; a job in full motion has pending ops too.
    """
    graph = WaitGraph(ranks, members, silent=False)
    parts = [_resolve(graph, part) for part in roots(graph)]
    if any(not part.culprits for part in parts) and any(row.state == "silent" for row in ranks):
        wide = WaitGraph(ranks, members, silent=True)
        again = [_resolve(wide, part) for part in roots(wide)]
        # a missing report is named only for waits that no reported fact explains
        kept = [part for part in parts if part.culprits]
        silent = [part for part in again if part.kind == "silent" and _unexplained(wide, part, parts)]
        parts = kept + silent or parts
        graph = wide if silent else graph
    if not any(part.culprits for part in parts):
        parts = _stopped(graph) or parts
    return _blame(graph, parts)


def _unexplained(graph: WaitGraph, silent: _Part, parts: Sequence[_Part]) -> bool:
    """Tell whether a root without a culprit waits for this silent rank."""
    open_ranks = {rank for part in parts if not part.culprits for rank in part.candidates}
    edges = graph.edges
    reached: set[Node] = set(open_ranks)
    work: list[Node] = list(open_ranks)
    while work:
        for target in edges.get(work.pop(), frozenset()):
            if target not in reached:
                reached.add(target)
                work.append(target)
    return bool(reached & silent.culprits.keys())


def _resolve(graph: WaitGraph, part: frozenset[Node]) -> _Part:
    inside = frozenset(node for node in part if isinstance(node, int))
    ops = sorted(node for node in part if not isinstance(node, int))
    if len(part) == 1:
        rank = next(iter(inside))
        mark = graph.marks.get(rank) or Mark(kind=_state(graph, rank), place=_awaited_in(graph, rank))
        return _Part(culprits={rank: mark}, kind=mark.kind, place=mark.place)
    place = _awaited_in(graph, min(inside))
    for kind, ranks in _tell_apart(graph, inside, ops):
        if ranks and 2 * len(ranks) <= len(inside):
            return _Part(
                culprits={rank: Mark(kind=kind, place=place) for rank in ranks}, kind=kind, place=place
            )
    torn = [holders for where, holders in graph.unclear.items() if holders & inside]
    crossed = all(node[0] == "absent" for node in ops)  # each waits for another to enter or to post
    kind_left: Kind = "desync" if torn or crossed else "unknown"
    return _Part(culprits={}, candidates=inside, kind=kind_left, place=place)


def _awaited_in(graph: WaitGraph, rank: int) -> Place:
    """Where most others wait for this rank."""
    reasons: Mapping[Place, int] = graph.reasons.get(rank, {})
    return max(reasons, key=lambda place: (reasons[place], place), default=("", 0))


def _state(graph: WaitGraph, rank: int) -> Kind:
    state = graph.ranks[rank].state
    return "host" if state == "alive" else state


def _tell_apart(
    graph: WaitGraph, inside: frozenset[int], ops: Sequence[OpNode]
) -> list[tuple[Kind, frozenset[int]]]:
    """Who of a knot of waiting ranks is the odd one, by each sign in turn."""
    hardware = frozenset(rank for rank in inside if graph.ranks[rank].hardware)
    late = frozenset(rank for rank in inside if graph.idle(rank))
    return [("device_or_transport", hardware), ("launch", late), ("desync", _minority(graph, inside, ops))]


def _minority(graph: WaitGraph, inside: frozenset[int], ops: Sequence[OpNode]) -> frozenset[int]:
    """In a circle of ranks that wait for each other in different ops: those that left the majority's order.

    Every rank runs the same program. Of those that entered an op and those that did not, the fewer erred.
    """
    sides = set()
    crossed = bool(ops) and all(node[0] == "absent" for node in ops)
    if not crossed or any(isinstance(target, int) for rank in inside for target in graph.edges[rank]):
        return frozenset()  # somebody is inside an op that all entered, or waits for a send
    for _, name, sequence, _ in ops:
        missing = graph.tables[name].absent(sequence) & inside
        entered = {rank for rank in inside if ("absent", name, sequence, 0) in graph.edges[rank]}
        sides.add(frozenset(missing if len(missing) < len(entered) else entered))
    return sides.pop() if len(sides) == 1 else frozenset()


def _stopped(graph: WaitGraph) -> list[_Part]:
    """Nothing pending anywhere tells: then a heartbeat that is gone does."""
    stopped = {rank: row for rank, row in graph.ranks.items() if row.state == "stopped"}
    if not stopped or 2 * len(stopped) > len(graph.ranks):
        return []
    mark = Mark(kind="stopped", place=("", 0))
    return [_Part(culprits=dict.fromkeys(stopped, mark), kind="stopped")]


def _blame(graph: WaitGraph, parts: Sequence[_Part]) -> Blame:
    marks = {rank: mark for part in parts for rank, mark in part.culprits.items()}
    dead = [rank for rank, mark in marks.items() if mark.kind == "dead"]
    if 2 * len(dead) > len(graph.ranks):  # a job that was killed: the first to die is not known here
        marks, parts = {}, [_Part(culprits={}, candidates=frozenset(dead), kind="dead")]
    kinds = [mark.kind for mark in marks.values()] or [part.kind for part in parts]
    kind: Kind = min(kinds, key=_ORDER.index) if kinds else "unknown"
    candidates = frozenset() if marks else frozenset(rank for part in parts for rank in part.candidates)
    if not marks and not candidates:  # nobody waits in anything that was reported
        candidates = frozenset(rank for rank, row in graph.ranks.items() if row.state == "silent")
    places = [part.place for part in parts if part.kind == kind] or [("", 0)]
    waiting = sum(bool(graph.edges[rank]) for rank in graph.ranks)
    return Blame(
        culprits=tuple(sorted(marks)), candidates=tuple(sorted(candidates)), kind=kind,
        group=places[0][0], waiting=waiting, sentence=_sentence(graph, marks, candidates, kind, waiting),
    )  # fmt: skip


def _sentence(
    graph: WaitGraph, marks: Mapping[int, Mark], candidates: frozenset[int], kind: Kind, waiting: int
) -> str:
    total = len(graph.ranks)
    if marks:
        said = [clause(graph, rank, marks[rank]) for rank in sorted(marks)[:_CLAUSES_MAX]]
        more = f"; and {len(marks) - len(said)} more" if len(marks) > len(said) else ""
        return f"{'; '.join(said)}{more}; {waiting} of {total} ranks wait"
    if candidates:
        why = "ops of different kind at one place" if kind == "desync" else "nothing tells them apart"
        return f"{waiting} of {total} ranks wait; the cause is among ranks {names(candidates)}: {why}"
    return f"{waiting} of {total} ranks wait in a collective; nothing points to a rank"
