"""What the brain counts tick by tick: stage times, findings, incidents, Xids. Bounded at any fleet size."""

from __future__ import annotations

from collections import Counter as Tally
from dataclasses import dataclass, field

from prometheus_client import Counter, Histogram, disable_created_metrics

from gpuvigil_collector.incidents.tracker import Change
from gpuvigil_collector.topology import Topology
from gpuvigil_detectors.base import FactEvent, Finding, Severity, Snapshot
from gpuvigil_protos import entity as names

XID_SERIES_MAX = 1000
XID_SERIES_OF_NODE_MAX = 50
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series a counter, for a question nobody asks of ours

FindingKey = tuple[str, str, str, Severity, str]
"""(detector, rule, class, severity, entity): one finding for as long as it holds."""


@dataclass(frozen=True, slots=True)
class XidKey:
    """Labels of one Xid series; gpu is the NVML index as text, both empty when the GPU is unknown."""

    node: str
    gpu: str
    uuid: str
    xid: int


@dataclass(slots=True)
class XidCount:
    """One Xid of one GPU: a count per origin (driver event and kernel line are one signal), newest time."""

    by_origin: Tally[str] = field(default_factory=Tally)
    last_ns: int = 0

    @property
    def total(self) -> int:
        """The larger origin: each sees the same Xid, and either may miss one."""
        return max(self.by_origin.values())


class Counts:
    """Written by the brain's thread alone; the metrics endpoint reads it."""

    def __init__(self) -> None:
        self.tick_seconds = Histogram(
            "gpuvigil_tick_duration_seconds", "Time of one whole tick.", buckets=_BUCKETS, registry=None
        )
        self.stage_seconds = Histogram(
            "gpuvigil_stage_duration_seconds", "Time of one stage of a tick.", ["stage"], buckets=_BUCKETS,
            registry=None,
        )  # fmt: skip
        self.findings_total = Counter(
            "gpuvigil_findings", "Findings that began, by detector.", ["detector", "class", "severity"],
            registry=None,
        )  # fmt: skip
        self.incident_changes_total = Counter(
            "gpuvigil_incident_changes", "Incidents opened, reopened, changed, merged and resolved.",
            ["class", "severity", "change"], registry=None,
        )  # fmt: skip
        self.findings_now: Tally[tuple[str, str, str]] = Tally()
        self.xids: dict[XidKey, XidCount] = {}
        self.xids_overflow = 0
        self._holding: set[FindingKey] = set()

    def count_findings(self, findings: list[Finding]) -> None:
        """Count each finding once, when it begins; and how many hold now."""
        holding = {(f.detector, f.rule, f.fault_class, f.severity, f.entity) for f in findings}
        for detector, _, fault_class, severity, _ in sorted(holding - self._holding):
            self.findings_total.labels(detector, fault_class, severity).inc()
        self.findings_now = Tally((key[0], key[2], key[3]) for key in holding)
        self._holding = holding

    def count_changes(self, changes: list[Change]) -> None:
        """Count what happened to incidents."""
        for change in changes:
            incident = change.incident
            self.incident_changes_total.labels(incident.fault_class, incident.severity, change.what).inc()

    def count_events(self, snapshot: Snapshot) -> None:
        """Count the Xids among this tick's events; past the bound the quietest series goes, counted."""
        for event in snapshot.events:
            if event.kind == "xid" and not event.judged:
                self._count_xid(event, Topology(snapshot.nodes))

    def _make_room(self, node: str) -> None:
        """Drop the series that was quiet longest, of this node where it has many."""
        own = [key for key in self.xids if key.node == node]
        among = own if len(own) > XID_SERIES_OF_NODE_MAX else self.xids
        del self.xids[min(among, key=lambda key: self.xids[key].last_ns)]
        self.xids_overflow += 1

    def _count_xid(self, event: FactEvent, topology: Topology) -> None:
        uuid = names.gpu_uuid_of(event.entity) or ""
        index = topology.gpu_index(event.node, uuid) if uuid else None
        key = XidKey(event.node, "" if index is None else str(index), uuid, event.code)
        if key not in self.xids and len(self.xids) >= XID_SERIES_MAX:
            self._make_room(event.node)
        count = self.xids.setdefault(key, XidCount())
        count.by_origin[event.origin] += 1
        count.last_ns = max(count.last_ns, event.time_ns)
