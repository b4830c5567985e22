"""The open incidents, found by node and by the claims they hold: a storm of claims costs its own length."""

from __future__ import annotations

from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_collector.incidents.ranking import FLEET, Claim, Key, locality

_FLEETS = ""  # the node of incidents about the whole fleet


class OpenSet:
    """Open incidents by id, in the order in which they were opened. One thread."""

    def __init__(self) -> None:
        self.by_id: dict[str, Incident] = {}
        self._by_node: dict[str, set[str]] = {}
        self._leads: dict[str, Claim] = {}
        self._holding: dict[Key, set[str]] = {}

    def put(self, incident: Incident) -> None:
        """Take in an incident, or its newer version."""
        old = self.by_id.get(incident.id)
        if old is not None and old.node != incident.node:
            self._leave_node(old)
        known = old.members if old is not None else frozenset()
        self.by_id[incident.id] = incident
        self._by_node.setdefault(incident.node, set()).add(incident.id)
        if incident.members is not known:
            for key in incident.members - known:
                self._holding.setdefault(key, set()).add(incident.id)
        if old is None or old.fingerprint != incident.fingerprint:
            self._leads[incident.id] = incident.lead

    def drop(self, incident: Incident) -> None:
        """Let go of an incident that is no longer open."""
        stored = self.by_id.pop(incident.id)
        del self._leads[incident.id]
        self._leave_node(stored)
        for key in stored.members:
            ids = self._holding[key]
            ids.discard(incident.id)
            if not ids:
                del self._holding[key]

    def _leave_node(self, incident: Incident) -> None:
        ids = self._by_node[incident.node]
        ids.discard(incident.id)
        if not ids:
            del self._by_node[incident.node]

    def near(self, claim: Claim) -> list[tuple[Incident, Claim]]:
        """Incidents that could concern this claim, each with its lead: its node's and the fleet's.

        All of them for a claim about the fleet.
        """
        if claim.entity == FLEET:
            ids = list(self.by_id)
        else:
            ids = [*self._by_node.get(locality(claim.entity)[0], ()), *self._by_node.get(_FLEETS, ())]
        return [(self.by_id[id_], self._leads[id_]) for id_ in ids]

    def holding(self, key: Key) -> list[Incident]:
        """Incidents that hold this claim, as cause or as symptom."""
        return [self.by_id[id_] for id_ in self._holding.get(key, ())]

    def count(self, node: str) -> int:
        """How many incidents are open on a node."""
        return len(self._by_node.get(node, ()))

    def concerns(self, node: str) -> bool:
        """Tell whether an incident is open on the node or the fleet."""
        return _FLEETS in self._by_node or node in self._by_node
