"""Nodes that are gone for good: forgotten after a week of silence, so that they do not alarm for ever.

What is forgotten is written in the journal; a node that says Hello again is simply a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from gpuvigil_collector.journal import Note
from gpuvigil_detectors.base import NodeFact

_EVERY_NS: Final = 60 * 1_000_000_000
_SETTLE_NS: Final = 3600 * 1_000_000_000  # after a start every node that lives has an hour to come back


class Forgets(Protocol):
    """What knows nodes (the store)."""

    def forget(self, node: str) -> bool:
        """Forget a node that is not connected; False when it is."""
        ...


class Retire:
    """Looks once a minute; the brain's thread alone."""

    def __init__(self, store: Forgets, forget_after_s: float) -> None:
        self._store, self._forget_after_ns = store, int(forget_after_s * 1e9)
        self._start_ns = 0
        self._looked_ns = 0

    def tick(self, nodes: Mapping[str, NodeFact], now_ns: int) -> list[Note]:
        """Forget who has been silent for long enough; return what to write in the journal."""
        self._start_ns = self._start_ns or now_ns
        if now_ns - self._looked_ns < _EVERY_NS or now_ns - self._start_ns < _SETTLE_NS:
            return []
        self._looked_ns = now_ns
        silent = [
            fact
            for fact in nodes.values()
            if not fact.connected and now_ns - fact.last_seen_ns >= self._forget_after_ns
        ]
        return [_note(fact, now_ns) for fact in silent if self._store.forget(fact.node)]


def _note(fact: NodeFact, now_ns: int) -> Note:
    days = (now_ns - fact.last_seen_ns) / 86_400e9
    detail = f"{fact.node}: silent for {days:.1f} days, {len(fact.gpus)} GPUs; its next Hello brings it back"
    return Note(time_ns=now_ns, what="node_forgotten", detail=detail)
