"""Clocks that are off: a node's against the fleet's, and the collector's own against all.

Offsets come from the sending times of the agents' messages, so the way here is in them: bounds are seconds.
With fewer than three nodes nobody can say whose clock is wrong, and the sentence does not.
"""

from __future__ import annotations

import statistics
from typing import Final

from gpuvigil_detectors.base import Evidence, Finding, NodeFact
from gpuvigil_detectors.catalogue import StructuralBounds

_SECOND: Final = 1_000_000_000
_FLEET: Final = "fleet"
_JURY: Final = 3


class Skew:
    """Judges the clock offset of every connected node."""

    def __init__(self, bounds: StructuralBounds) -> None:
        self._bounds = bounds
        self._since: dict[str, int] = {}

    def findings(self, nodes: dict[str, NodeFact], now_ns: int) -> list[Finding]:
        """Return one finding a node that differs from most; one for the fleet where most differ from us."""
        offsets = {name: fact.clock_offset_ns / _SECOND for name, fact in nodes.items() if fact.connected}
        middle = statistics.median(offsets.values()) if len(offsets) >= _JURY else 0.0
        odd = {f"{name}/node": offset - middle for name, offset in offsets.items()} | {_FLEET: middle}
        odd = {name: gap for name, gap in odd.items() if abs(gap) >= self._bounds.skew_s}
        self._since = {name: self._since.get(name, now_ns) for name in odd}
        held_ns = int(self._bounds.skew_hold_s * _SECOND)
        return [
            _finding(name, gap, since_ns, now_ns, len(offsets))
            for (name, gap), since_ns in zip(odd.items(), self._since.values(), strict=True)
            if now_ns - since_ns >= held_ns
        ]


def _finding(entity: str, gap_s: float, since_ns: int, now_ns: int, nodes: int) -> Finding:
    way = "behind" if gap_s > 0 else "ahead of"
    if entity == _FLEET:
        way = "ahead of" if gap_s > 0 else "behind"
        sentence = (
            f"the collector's clock is {abs(gap_s):.1f} s {way} most of {nodes} nodes: look at its time "
            "service"
        )
    elif nodes < _JURY:
        sentence = f"this node's clock is {abs(gap_s):.1f} s {way} the collector's; one of the two is wrong"
    else:
        sentence = f"this node's clock is {abs(gap_s):.1f} s {way} most others: look at its time service"
    return Finding(
        detector="structural", rule="clock_skew", entity=entity, severity="warning", origin="agent",
        fault_class="monitor_fault" if entity == _FLEET else "clock_skew", start_ns=since_ns, end_ns=now_ns,
        sentence=sentence,
        evidence=Evidence(observed=gap_s, expected=0.0, unit="seconds", since_ns=since_ns),
    )  # fmt: skip
