"""Nodes whose agent says nothing. Silence is our fault until a second path agrees: never node_down by itself.

When much of the fleet falls silent at once, that is one fault of the collector or the network, not many.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from gpuvigil_detectors.base import Evidence, Finding, NodeFact
from gpuvigil_detectors.catalogue import StructuralBounds

_SECOND: Final = 1_000_000_000
FLEET: Final = "fleet"


class Silence:
    """Judges how long each node has been silent."""

    def __init__(self, bounds: StructuralBounds) -> None:
        self._bounds = bounds
        self._start_ns = 0
        self._storm_ns = 0

    def findings(self, nodes: dict[str, NodeFact], now_ns: int) -> list[Finding]:
        """Return one finding a silent node; in a storm one for the fleet, and the nodes' do not notify."""
        self._start_ns = self._start_ns or now_ns
        if now_ns - self._start_ns < self._bounds.start_grace_s * _SECOND:
            return []
        silent_ns = self._bounds.silent_s * _SECOND
        quiet = {name: now_ns - max(fact.last_seen_ns, self._start_ns) for name, fact in nodes.items()}
        found = [_node(name, age, now_ns) for name, age in quiet.items() if age >= silent_ns]
        # nodes cross the bound one by one: those half way count too, so that the first does not cry alone
        near = sum(age >= silent_ns / 2 for age in quiet.values())
        storm = bool(found) and near >= max(
            self._bounds.storm_nodes_min, self._bounds.storm_share * len(nodes)
        )
        if not storm:
            self._storm_ns = 0
            return found
        self._storm_ns = self._storm_ns or min(finding.start_ns for finding in found)
        return [self._fleet(near, len(nodes), now_ns), *(replace(finding, notify=False) for finding in found)]

    def _fleet(self, silent: int, nodes: int, now_ns: int) -> Finding:
        sentence = (
            f"{silent} of {nodes} agents fell silent together: look at the collector and its network first, "
            "the nodes may be well"
        )
        return Finding(
            detector="structural", rule="fleet_silent", entity=FLEET, fault_class="monitor_fault",
            severity="critical", start_ns=self._storm_ns, end_ns=now_ns, sentence=sentence, origin="agent",
            evidence=Evidence(observed=float(silent), expected=0.0, unit="nodes", since_ns=self._storm_ns),
        )  # fmt: skip


def _node(name: str, age_ns: int, now_ns: int) -> Finding:
    seconds = age_ns / _SECOND
    return Finding(
        detector="structural", rule="agent_silent", entity=f"{name}/node", fault_class="monitor_fault",
        severity="warning", start_ns=now_ns - age_ns, end_ns=now_ns, origin="agent",
        sentence=f"agent silent for {seconds:.0f} s; whether the node is down nothing else has said",
        evidence=Evidence(observed=seconds, unit="seconds", since_ns=now_ns - age_ns),
    )  # fmt: skip
