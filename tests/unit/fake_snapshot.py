"""A fleet in memory that speaks Snapshot: what detectors and the brain are tested with, on a fake clock."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field, replace

import numpy as np

from gpuvigil_detectors.base import FactEvent, GpuFact, Latest, NodeFact, StepRows, Window

SECOND = 10**9
START_NS = 1_800_000_000 * SECOND


@dataclass
class FakeSnapshot:
    """One tick's view; built by `Fleet.snapshot` or by hand from dicts."""

    now_ns: int
    events: tuple[FactEvent, ...] = ()
    steps: tuple[StepRows, ...] = ()
    nodes: dict[str, NodeFact] = field(default_factory=dict)
    history: dict[str, dict[str, deque]] = field(default_factory=dict)  # metric -> entity -> (time_ns, value)

    def latest(self, metric: str) -> Latest:
        series = self.history.get(metric, {})
        newest = [points[-1] if points else (0, np.nan) for points in series.values()]
        ages = [(self.now_ns - time) / SECOND if time else np.inf for time, _ in newest]
        return Latest(
            metric=metric,
            entities=tuple(series),
            age_s=np.array(ages, dtype=np.float32),
            values=_float32([value for _, value in newest]),
        )

    def window(self, metric: str, seconds: int) -> Window:
        series = self.history.get(metric, {})
        last = self.now_ns // SECOND
        values = np.full((1, len(series), seconds), np.nan, dtype=np.float32)
        for row, points in enumerate(series.values()):
            for time, value in points:
                column = seconds - 1 - (last - time // SECOND)
                if 0 <= column < seconds:
                    values[0, row, column] = value
        times = (np.arange(last - seconds + 1, last + 1) * SECOND).astype(np.int64)
        return Window(
            metrics=(metric,),
            entities=tuple(series),
            time_ns=times,
            values=values,
            learnable=np.ones((len(series), seconds), dtype=bool),
        )


class Fleet:
    """Values that are sent every second until they change or stop, events, and node facts."""

    def __init__(self, now_ns: int = START_NS, keep: int = 300) -> None:
        self.now_ns = now_ns
        self._keep = keep
        self._values: dict[tuple[str, str], float] = {}
        self._history: dict[str, dict[str, deque]] = defaultdict(dict)
        self._events: list[FactEvent] = []
        self.nodes: dict[str, NodeFact] = {}

    def node(self, node: str, gpus: int = 0, **changes: object) -> NodeFact:
        facts = tuple(
            GpuFact(uuid=f"GPU-{node}-{i}", index=i, model="H100", pci_bus_id="", seen=True)
            for i in range(gpus)
        )
        base = NodeFact(
            node=node,
            boot_id="b1",
            connected=True,
            first_seen_ns=self.now_ns,
            last_seen_ns=self.now_ns,
            clock_offset_ns=0,
            agent_version="0",
            gpu_source="simulated",
            note="",
            driver_version="1",
            gpus=facts,
        )
        self.nodes[node] = replace(self.nodes.get(node, base), **changes)
        return self.nodes[node]

    def gpu(self, node: str, index: int = 0) -> str:
        return f"{node}/gpu:GPU-{node}-{index}"

    def set(self, metric: str, entity: str, value: float) -> None:
        self._values[metric, entity] = value

    def stop(self, entity: str, metric: str | None = None) -> None:
        """Stop sending: one metric of an entity, or everything whose name starts with `entity`."""
        self._values = {
            key: value
            for key, value in self._values.items()
            if not (key[1].startswith(entity) and metric in (None, key[0]))
        }

    def event(self, node: str, kind: str, entity: str = "node", **fields: object) -> FactEvent:
        given = {"time_ns": self.now_ns, "origin": "driver", **fields}
        event = FactEvent(node=node, kind=kind, entity=entity, **given)
        self._events.append(event)
        return event

    def advance(self, seconds: float = 1) -> FakeSnapshot:
        """Move the clock, record every value that is being sent, refresh connected nodes; return the view."""
        self.now_ns += round(seconds * SECOND)
        for (metric, entity), value in self._values.items():
            points = self._history[metric].setdefault(entity, deque(maxlen=self._keep))
            points.append((self.now_ns, value))
        for name, fact in self.nodes.items():
            if fact.connected:
                self.nodes[name] = replace(fact, last_seen_ns=self.now_ns)
        return self.snapshot()

    def snapshot(self) -> FakeSnapshot:
        events, self._events = tuple(self._events), []
        history = {
            metric: {entity: deque(points) for entity, points in series.items()}
            for metric, series in self._history.items()
        }
        return FakeSnapshot(now_ns=self.now_ns, events=events, nodes=dict(self.nodes), history=history)


def _float32(values: list[float]) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.array(values, dtype=np.float32)


def run(detector, fleet: Fleet, seconds: int):
    """Tick once a second; return the findings of the last tick."""
    findings = []
    for _ in range(seconds):
        findings = detector.tick(fleet.advance())
    return findings
