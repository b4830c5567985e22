"""Holds of ours that somebody else took away: a person who undrains a node has the last word on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from gpuvigil_collector.repair.case import Case
from gpuvigil_collector.repair.needs import Scenery

GONE_NS: Final = 60_000_000_000
"""Believed once every reading for so long says so: one reading may miss a node."""


class TakenHolds:
    """Call `look` once a tick."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}

    def look(self, cases: Iterable[Case], scenery: Scenery, acts: Callable[[Case], bool]) -> list[Case]:
        """Return the cases whose hold is no longer there, by the scheduler's word; none where it has none.

        Only a hold that the scheduler has called ours can go: one of a site's own tool it may not know.
        acts: whether a case's action is being carried out: a release is on its way, or a hold not seen yet.
        """
        nodes = scenery.state.nodes
        if nodes is None or not scenery.scheduler_ns:
            self._since.clear()
            return []
        gone: dict[str, Case] = {}
        for case in cases:
            if case.held and case.node in nodes and scenery.scheduler_ns > case.held_ns:
                ours = nodes[case.node].hold == "ours"
                case.held_seen |= ours
                if case.held_seen and not ours and not acts(case):
                    gone[case.id] = case
        self._since = {name: self._since.get(name, scenery.now_ns) for name in gone}
        return [case for name, case in gone.items() if scenery.now_ns - self._since[name] >= GONE_NS]
