"""Disks and network interfaces that went while the node's others go on: pulled, dead on the bus, or moved.

A part counts once it was there for a while, so that names of an early boot are no loss. A reboot forgets:
what it came up without is no longer this node's, as far as one node can tell.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gpuvigil_detectors.base import Evidence, Finding, Snapshot
from gpuvigil_detectors.catalogue import StructuralBounds
from gpuvigil_detectors.freshness import Freshness, node_of
from gpuvigil_detectors.series_state import SeriesState

_SECOND: Final = 1_000_000_000
# what is read of every part as long as it exists -> the word, the class, what to do
_PARTS: Final = (
    ("interface_receive_bytes_total", "network interface", "nic_down",
     "reseat or replace it, unless a container took it"),
    ("disk_busy_ratio", "disk", "disk_failing", "look at its slot and the kernel log, unless it was pulled"),
)  # fmt: skip


class Vanished:
    """Compares the newest reading of every part with those of its node's other parts of the same kind."""

    def __init__(self, bounds: StructuralBounds) -> None:
        self._bounds = bounds
        self._parts = [(Freshness([probe]), SeriesState(first=("i8", 0, ()))) for probe, *_ in _PARTS]
        self._kernels: dict[str, str] = {}

    def findings(self, snapshot: Snapshot) -> list[Finding]:
        """Return the parts that are gone."""
        kernels = {name: fact.boot_id.partition(".")[0] for name, fact in snapshot.nodes.items()}
        rebooted = {name for name, kernel in kernels.items() if self._kernels.get(name, kernel) != kernel}
        self._kernels = kernels
        found = []
        for (fresh, state), (_, word, fault_class, advice) in zip(self._parts, _PARTS, strict=True):
            for entity, newest_ns in self._gone(snapshot, fresh, state, rebooted):
                seconds = (snapshot.now_ns - newest_ns) / _SECOND
                found.append(
                    Finding(
                        detector="structural", rule="part_vanished", entity=entity, fault_class=fault_class,
                        severity="warning", start_ns=newest_ns, end_ns=snapshot.now_ns, origin="agent",
                        sentence=f"this {word} has been gone from the kernel's list for {seconds:.0f} s "
                        f"while the node's others go on: {advice}",
                        evidence=Evidence(observed=seconds, unit="seconds", since_ns=newest_ns),
                    )
                )  # fmt: skip
        return found

    def _gone(
        self, snapshot: Snapshot, fresh: Freshness, state: SeriesState, rebooted: set[str]
    ) -> list[tuple[str, int]]:
        fresh.update(snapshot)
        state.align(fresh.entities)
        if not fresh.entities:
            return []
        now_ns, bounds, first = snapshot.now_ns, self._bounds, state["first"]
        if rebooted:
            first[[node_of(entity) in rebooted for entity in fresh.entities]] = 0
        alive = now_ns - fresh.newest_ns <= bounds.fresh_s * _SECOND
        first[alive & (first == 0)] = now_ns
        others = now_ns - fresh.node_newest_ns[fresh.node_rows] <= bounds.fresh_s * _SECOND
        gone = (first > 0) & others & (now_ns - fresh.newest_ns >= bounds.part_gone_s * _SECOND)
        known = fresh.newest_ns - first >= bounds.part_known_s * _SECOND
        return [
            (fresh.entities[row], int(fresh.newest_ns[row]))
            for row in np.flatnonzero(gone & known)
            if node_of(fresh.entities[row]) in snapshot.nodes
        ]
