"""Findings, topologies and trackers for tests of the brain."""

from __future__ import annotations

from itertools import count

from gpuvigil_collector.config import IncidentSettings
from gpuvigil_collector.incidents import ranking
from gpuvigil_collector.incidents.tracker import Tracker
from gpuvigil_collector.topology import Topology
from gpuvigil_detectors.base import Finding, GpuFact, NodeFact

SECOND = 10**9
T0 = 1_800_000_000 * SECOND


def node(name, gpus=8, connected=True):
    facts = tuple(
        GpuFact(uuid=f"GPU-{name}-{i}", index=i, model="H100", pci_bus_id=f"0000:{i:02x}:00.0", seen=True)
        for i in range(gpus)
    )
    return NodeFact(
        node=name, boot_id="b", connected=connected, first_seen_ns=T0, last_seen_ns=T0, clock_offset_ns=0,
        agent_version="0.1.0", gpu_source="simulated", note="", driver_version="575", gpus=facts,
    )  # fmt: skip


def fleet(nodes=16, gpus=8):
    return Topology({f"n{i}": node(f"n{i}", gpus) for i in range(nodes)})


def gpu(name, index=0):
    return f"{name}/gpu:GPU-{name}-{index}"


def finding(fault_class, entity, *, at=0.0, severity="critical", origin="driver", rule="r", **more):
    start_ns = T0 + int(at * SECOND)
    return Finding(
        detector=more.pop("detector", "rules"), rule=rule, entity=entity, fault_class=fault_class,
        severity=severity, start_ns=start_ns, end_ns=start_ns, origin=origin,
        sentence=more.pop("sentence", f"{fault_class} on {entity}"), **more,
    )  # fmt: skip


class Life:
    """A tracker on a fake clock: `tick` at a second with the findings that hold then."""

    def __init__(self, topology=None, **settings):
        numbers = count(1)
        self.topology = topology or fleet()
        self.tracker = Tracker(
            causes=ranking.load(), settings=IncidentSettings(**settings), new_id=lambda: f"i{next(numbers)}"
        )
        self.log = []

    def tick(self, at, *findings):
        changes = self.tracker.tick(list(findings), self.topology, T0 + int(at * SECOND))
        self.log += [(change.what, change.incident.fault_class, change.incident.target) for change in changes]
        return changes

    def hold(self, start, end, *findings):
        for second in range(start, end):
            self.tick(second, *findings)

    @property
    def open(self):
        return [(one.fault_class, one.target) for one in self.tracker.open.values()]
