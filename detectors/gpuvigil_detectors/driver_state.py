"""What the driver and its keeper said: GPUs lost and back, calls that never return, a process that crashed.

A lost GPU stays lost until the driver says it is back, the inventory has it again, or it reads again for a
while. A hang on one GPU is that GPU's; without a GPU it is the node's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from gpuvigil_detectors.base import Evidence, FactEvent, Finding, NodeFact, Severity
from gpuvigil_detectors.catalogue import StructuralBounds

_SECOND: Final = 1_000_000_000
_STANDING_MAX: Final = 100_000


@dataclass(slots=True)
class Standing:
    """One fact that holds: since when, heard last, from whom."""

    since_ns: int
    heard_ns: int
    origins: set[str] = field(default_factory=set)
    fields: dict[str, str] = field(default_factory=dict)
    text: str = ""
    count: int = 1
    synthetic: bool = False
    inventory: bool = False


class DriverState:
    """Standing facts of every node's driver, fed with events and inventories."""

    def __init__(self, bounds: StructuralBounds) -> None:
        self._bounds = bounds
        self.lost: dict[str, Standing] = {}
        self.stuck: dict[str, Standing] = {}
        self.crashed: dict[str, Standing] = {}
        self._boots: dict[str, str] = {}

    def take(self, event: FactEvent, now_ns: int) -> None:
        """Apply one event at its own time.

        A loss that was judged before is left out: readings end it, and the inventory says it again.
        """
        entity, node = f"{event.node}/{event.entity}", f"{event.node}/node"
        if event.kind == "gpu_lost" and not event.judged:
            _stand(self.lost, entity, event, now_ns)
        elif event.kind == "gpu_returned":
            self.lost.pop(entity, None)
            self.stuck.pop(entity, None)
        elif event.kind == "driver_stuck":
            _stand(self.stuck, entity, event, now_ns)
        elif event.kind == "driver_crashed":
            _stand(self.crashed, node, event, now_ns)
        elif event.kind == "driver_recovered":
            for name in [n for n in self.stuck if n == entity or (entity == node and _on(n, event.node))]:
                del self.stuck[name]

    def inventory(self, nodes: dict[str, NodeFact], now_ns: int) -> None:
        """Compare inventories with what was there; a node that booted has no old driver troubles."""
        for name, fact in nodes.items():
            before = self._boots.get(name)
            self._boots[name] = fact.boot_id
            if before is not None and before != fact.boot_id:
                self.forget(name)
            for gpu in fact.gpus:
                entity = f"{name}/gpu:{gpu.uuid}"
                standing = self.lost.get(entity)
                if not gpu.seen and standing is None:
                    self.lost[entity] = Standing(now_ns, now_ns, {"driver"}, inventory=True)
                elif not gpu.seen and standing is not None:
                    standing.inventory = True
                elif gpu.seen and standing is not None and standing.inventory:
                    del self.lost[entity]

    def readings(self, newest_ns: dict[str, int]) -> None:
        """A GPU that has been read again for a while is neither lost nor stuck."""
        settle_ns = int(self._bounds.lost_settle_s * _SECOND)
        for table in (self.lost, self.stuck):
            for entity in [e for e, s in table.items() if newest_ns.get(e, 0) > s.heard_ns + settle_ns]:
                if not table[entity].inventory:
                    del table[entity]

    def troubled(self, node: str) -> bool:
        """Whether the driver of this node hangs or crashed lately, so that missing readings are no news."""
        return f"{node}/node" in self.crashed or any(_on(name, node) for name in self.stuck)

    def findings(self, now_ns: int) -> list[Finding]:
        """Return everything that stands."""
        hold_ns = int(self._bounds.crash_hold_s * _SECOND)
        self.crashed = {n: s for n, s in self.crashed.items() if now_ns - s.heard_ns <= hold_ns}
        found = [
            _finding("gpu_lost", "gpu_lost", e, s, "critical", now_ns, _lost(s)) for e, s in self.lost.items()
        ]
        for e, s in self.stuck.items():
            found.append(_finding("driver_stuck", "driver_hang", e, s, "critical", now_ns, _stuck(s, now_ns)))
        for e, s in self.crashed.items():
            found.append(_finding("driver_crashed", "monitor_fault", e, s, "warning", now_ns, _crashed(s)))
        return found

    def forget(self, node: str) -> None:
        """A node booted, or was decommissioned: nothing of it stands."""
        for table in (self.lost, self.stuck, self.crashed):
            for name in [n for n in table if _on(n, node)]:
                del table[name]


def _on(entity: str, node: str) -> bool:
    return entity.startswith(f"{node}/")


def _stand(table: dict[str, Standing], entity: str, event: FactEvent, now_ns: int) -> None:
    time_ns = min(event.time_ns, now_ns)
    standing = table.get(entity)
    if standing is None:
        if len(table) >= _STANDING_MAX:
            del table[next(iter(table))]
        standing = table[entity] = Standing(time_ns, time_ns, count=0, synthetic=event.synthetic)
    standing.heard_ns = max(standing.heard_ns, time_ns)
    standing.since_ns = min(standing.since_ns, time_ns)
    standing.count += 1
    standing.origins.add(event.origin)
    standing.fields.update(event.fields)
    standing.text = event.text or standing.text


def _lost(standing: Standing) -> str:
    how = "missing from the driver's inventory" if standing.inventory else "the driver no longer reaches it"
    if standing.origins == {"kernel_log"}:
        how = "the kernel says it has fallen off the bus"
    return f"GPU lost: {how}; restart the node, replace the board if it happens again"


def _stuck(standing: Standing, now_ns: int) -> str:
    call = standing.fields.get("call", "a driver call")[:80]
    seconds = (now_ns - standing.since_ns) / _SECOND
    return f"driver stuck: {call} does not return, reported {seconds:.0f} s ago; host readings go on"


def _crashed(standing: Standing) -> str:
    times = f" {standing.count} times" if standing.count > 1 else ""
    why = standing.fields.get("signal", standing.fields.get("exit", ""))[:40]
    return f"the process that talks to the driver crashed{times}{f' ({why})' if why else ''} and is replaced"


def _finding(
    rule: str,
    fault_class: str,
    entity: str,
    standing: Standing,
    severity: Severity,
    now_ns: int,
    sentence: str,
) -> Finding:
    facts = tuple((key, value[:200]) for key, value in sorted(standing.fields.items()))
    return Finding(
        detector="structural", rule=rule, entity=entity, fault_class=fault_class, severity=severity,
        start_ns=standing.since_ns, end_ns=now_ns, sentence=sentence, synthetic=standing.synthetic,
        origin="+".join(sorted(standing.origins)) or "driver",
        evidence=Evidence(since_ns=standing.since_ns, facts=facts),
    )  # fmt: skip
