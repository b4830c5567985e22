"""The newest Xid and network events of each node, remembered for the hang that may follow.

A job's word says who waits for whom; what its node's driver and kernel said shortly before says why. Facts
for people, with the time before the stand, and one judgement: a fatal Xid tells a rank apart from others that
wait alike. Bounds: the newest 8 events a node, 4,096 nodes and GPUs, 10 min.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from gpuvigil_detectors.base import FactEvent, Snapshot
from gpuvigil_detectors.catalogue import CodeTable, load
from gpuvigil_detectors.training.jobs import Job

KEPT_NS: Final = 600_000_000_000
_EVENTS_MAX, _NODES_MAX = 8, 4096
_WINDOW_S: Final = 290  # the ring holds 300
_NIC_RULES: Final = frozenset({"mlx5_fatal", "mlx5_warning"})
_CARRIER: Final = "interface_carrier_changes_total"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """One event: what it was, and where."""

    at_ns: int
    text: str


class NodeLog:
    """Call `take` once a tick; `facts` only where something stands."""

    def __init__(self) -> None:
        self._codes: dict[str, deque[_Said]] = {}
        self._network: dict[str, deque[_Said]] = {}
        self._struck: dict[str, int] = {}  # GPUs by full entity name, and when
        self._fatal = frozenset(code for row in load("xid", CodeTable).xid if row.fatal for code in row.codes)

    def take(self, snapshot: Snapshot) -> None:
        """Remember what came."""
        for event in snapshot.events:
            if event.synthetic:
                continue  # a drill explains no hang
            if event.kind in ("xid", "sxid"):
                name = "Xid" if event.kind == "xid" else "SXid"
                _keep(self._codes, event, f"{name} {event.code} on {event.entity}")
                if event.kind == "xid" and event.code in self._fatal:
                    self._strike(event)
            elif event.kind == "kernel" and event.fields.get("rule") in _NIC_RULES:
                _keep(self._network, event, event.text[:120])

    def struck(self, job: Job, now_ns: int) -> frozenset[int]:
        """Ranks whose GPU has reported a fatal Xid in the last 10 min."""
        if not self._struck:
            return frozenset()
        lately = {entity for entity, at_ns in self._struck.items() if now_ns - at_ns <= KEPT_NS}
        return frozenset(
            rank.number for rank in job.living if rank.gpu and f"{rank.node}/gpu:{rank.gpu}" in lately
        )

    def _strike(self, event: FactEvent) -> None:
        if len(self._struck) >= _NODES_MAX:
            del self._struck[next(iter(self._struck))]
        self._struck[f"{event.node}/{event.entity}"] = event.time_ns

    def facts(self, nodes: Iterable[str], since_ns: int, snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
        """The last Xid and network events of these nodes, as facts of a finding that began at `since_ns`."""
        names = set(nodes)
        found = (
            ("last_xid", _newest(self._codes, names, since_ns, snapshot.now_ns)),
            ("last_nic", _newest(self._network, names, since_ns, snapshot.now_ns)),
            ("carrier_changes", _carrier(snapshot, names)),
        )
        return tuple((key, value) for key, value in found if value)


def _keep(kept: dict[str, deque[_Said]], event: FactEvent, text: str) -> None:
    if event.node not in kept and len(kept) >= _NODES_MAX:
        del kept[next(iter(kept))]
    said = kept.setdefault(event.node, deque(maxlen=_EVENTS_MAX))
    said.append(_Said(at_ns=event.time_ns, text=text))


def _newest(kept: dict[str, deque[_Said]], nodes: set[str], since_ns: int, now_ns: int) -> str:
    """The newest event of any of the nodes, with its time to the stand; "" for none."""
    fresh = [(said, node) for node in nodes for said in kept.get(node, ()) if now_ns - said.at_ns <= KEPT_NS]
    if not fresh:
        return ""
    said, node = max(fresh, key=lambda one: (one[0].at_ns, one[1]))
    apart = (said.at_ns - since_ns) / 1e9
    when = f"{-apart:.0f} s before the last step ended" if apart < 0 else f"{apart:.0f} s after it"
    more = f"; {len(fresh) - 1} more within 10 min" if len(fresh) > 1 else ""
    return f"{said.text} of {node}, {when}{more}"


def _carrier(snapshot: Snapshot, nodes: set[str]) -> str:
    """Network links of the nodes that lost or found their carrier within the last minutes."""
    window = snapshot.window(_CARRIER, _WINDOW_S)
    found = []
    for entity, values in zip(window.entities, window.values[0], strict=True):
        seen = values[np.isfinite(values)] if entity.partition("/")[0] in nodes else values[:0]
        if len(seen) and seen[-1] > seen[0]:
            found.append(f"{entity} {seen[-1] - seen[0]:.0f}")
    return ", ".join(sorted(found)[:4])
