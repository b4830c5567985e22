"""The brain's read side: who is there, what they said, and the ring as windows. No gRPC here.

The supervisor's threads feed it (`feed`), the brain reads it (`snapshot`); one lock, held for
microseconds, is between them. Ring memory is read without any lock.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

import numpy as np

from gpuvigil_collector.ingest import frames
from gpuvigil_collector.ingest.ring import SETTLE_S, WINDOW_MAX_S, Plane
from gpuvigil_collector.store_events import EventQueue
from gpuvigil_collector.store_layout import SECOND_NS, Index, Layout
from gpuvigil_collector.store_ledger import LedgerRows
from gpuvigil_collector.store_registry import Registry
from gpuvigil_collector.store_steps import StepQueue
from gpuvigil_collector.topology import Topology
from gpuvigil_detectors.base import FactEvent, GpuFact, Latest, NodeFact, StepRows, Window

_RESULTS_MAX: Final = 10_000
_SAVE_INTERVAL_NS: Final = 60 * SECOND_NS


class StoreSnapshot:
    """One tick's view, a detectors.base.Snapshot. Answers are kept: detectors ask for the same."""

    def __init__(
        self, now_ns: int, events: tuple[FactEvent, ...], steps: tuple[StepRows, ...],
        nodes: dict[str, NodeFact], store: Store,
    ) -> None:  # fmt: skip
        self.now_ns = now_ns
        self.events = events
        self.steps = steps
        self.nodes = nodes
        self._store = store
        self._windows: dict[tuple[str, int], Window] = {}
        self._latest: dict[str, Latest] = {}

    def window(self, metric: str, seconds: int) -> Window:
        """Return the newest `seconds` settled columns, up to `now - 2 s`, at most 300.

        A series that is sampled slower than once a second has its value at the start of its 10 s.
        """
        seconds = max(1, min(seconds, WINDOW_MAX_S))
        found = self._windows.get((metric, seconds))
        if found is None:
            found = self._windows[metric, seconds] = self._read(metric, seconds)
        return found

    def _read(self, metric: str, seconds: int) -> Window:
        index = self._store.index(metric)
        first = self.now_ns // SECOND_NS - SETTLE_S - seconds + 1
        values = index.window(first, seconds)
        return Window(
            metrics=(metric,),
            entities=index.entities,
            time_ns=np.arange(first, first + seconds, dtype=np.int64) * SECOND_NS,
            values=values[None],
            learnable=np.ones(values.shape, np.bool_),
        )

    def latest(self, metric: str) -> Latest:
        """Return the newest value of every series, NaN and age inf where there never was one."""
        found = self._latest.get(metric)
        if found is None:
            index = self._store.index(metric)
            values, time_ns = index.latest()
            age = np.where(time_ns > 0, np.maximum(0, self.now_ns - time_ns) / SECOND_NS, np.inf)
            found = Latest(
                metric=metric, entities=index.entities, values=values, age_s=age.astype(np.float32)
            )
            self._latest[metric] = found
        return found


class Store:
    """What the collector knows now. Nodes that left stay known, and are loaded again after a restart."""

    def __init__(self, state_directory: Path) -> None:
        state_directory.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._registry = Registry(state_directory / "registry.sqlite")
        self._nodes = self._registry.load()
        self._unsaved: set[str] = set()
        self._saved_ns = 0
        self._events = EventQueue(state_directory / "judged.sqlite")
        self._steps = StepQueue()
        self._ledger = LedgerRows()
        self._layout = Layout()
        self._counters: dict[int, dict[str, float]] = {}
        self._ended: dict[str, float] = {}
        self._results: deque[frames.Result] = deque(maxlen=_RESULTS_MAX)

    def results(self) -> list[frames.Result]:
        """Return what agents made of commands since the last call."""
        with self._lock:
            found = list(self._results)
            self._results.clear()
        return found

    def snapshot(self, now_ns: int) -> StoreSnapshot:
        """Return this tick's view, with the events that came since the last call."""
        with self._lock:
            events, steps = self._events.take(), self._steps.take()
            nodes = dict(self._nodes)
        self._save(now_ns)
        placed = Topology(nodes).placed
        return StoreSnapshot(now_ns, tuple(placed(event) for event in events), steps, nodes, self)

    def mark_judged(self) -> None:
        """Note that the newest snapshot's events are judged and journaled: no news after a restart."""
        with self._lock:
            rows = self._events.judged()
        if rows:
            self._events.write(rows)

    def wait_events(self, timeout_s: float) -> bool:
        """Wait until an event is there for the next snapshot; False after `timeout_s` without one."""
        with self._arrived:
            return self._arrived.wait_for(lambda: bool(self._events or self._results), timeout_s)

    async def event_arrived(self, timeout_s: float) -> bool:
        """Do what `wait_events` does without holding up the event loop."""
        return await asyncio.to_thread(self.wait_events, timeout_s)

    def ledger(self) -> list[dict[str, Any]]:
        """Return the delivery ledger: one row a node, boot and class, sorted."""
        with self._lock:
            rows = self._ledger.rows()
        return [
            {
                "node": row.node, "boot_id": row.boot_id, "class": row.delivery_class,
                "received": row.received, "durable": row.durable, "duplicates": row.duplicates,
                "gap_sequences": row.gap_sequences, "refused": row.refused,
            }
            for row in rows
        ]  # fmt: skip

    def counters(self) -> dict[str, float]:
        """Return ingest's counters, summed over workers. A key `name:word` is `name` with that reason.

        Names that end in `_total` only grow, over restarts of workers too; the others are gauges.
        """
        with self._lock:
            total = dict(self._ended)
            for counters in self._counters.values():
                for name, value in counters.items():
                    total[name] = total.get(name, 0.0) + value
            total["events_dropped_total"] = self._events.dropped
            total["steps_dropped_total"] = self._steps.dropped
            total["judged_failures_total"] = self._events.failures
            total["registry_failures_total"] = self._registry.failures
            total["nodes_connected"] = sum(fact.connected for fact in self._nodes.values())
        return total

    def metrics(self) -> tuple[str, ...]:
        """Return the names of the metrics that any node has."""
        with self._lock:
            return self._layout.metrics()

    def index(self, metric: str) -> Index:
        """Return where a metric's series are."""
        with self._lock:
            return self._layout.index(metric)

    def forget(self, node: str) -> bool:
        """Forget a node that is gone for good, until its next Hello; False for one that is connected."""
        with self._lock:
            fact = self._nodes.get(node)
            if fact is not None and fact.connected:
                return False
            self._nodes.pop(node, None)
            self._unsaved.discard(node)
            self._layout.forget(node)
            self._events.forget(node)
            self._ledger.forget(node)
        self._registry.forget(node)  # without the lock, as in `_save`
        self._events.forget_written(node)
        return True

    def close(self) -> None:
        """Save the registry and close it."""
        self._save(time.time_ns(), force=True)
        self._registry.close()
        self._events.close()

    def _save(self, now_ns: int, *, force: bool = False) -> None:
        with self._lock:
            if now_ns - self._saved_ns > _SAVE_INTERVAL_NS or force:
                self._saved_ns = now_ns
                self._unsaved.update(name for name, fact in self._nodes.items() if fact.connected)
            facts = [self._nodes[node] for node in self._unsaved if node in self._nodes]
            self._unsaved.clear()
        # without the lock: a slow disk holds up the tick at most, never the workers
        if facts and not self._registry.save(facts):
            with self._lock:
                self._unsaved.update(fact.node for fact in facts)

    # --- the supervisor's side

    def feed(self, worker: int, message: frames.Message, planes: tuple[Plane, ...]) -> None:
        """Take one message of a worker whose ring is `planes`."""
        with self._lock:
            match message:
                case frames.NodeUp():
                    self._node_up(message)
                case frames.NodeDown():
                    self._change(message.node, connected=False)
                    self._unsaved.add(message.node)
                case frames.Series():
                    self._layout.put(message, planes)
                case frames.Event():
                    if self._events.add(message):
                        self._arrived.notify_all()
                case frames.Steps():
                    self._steps.add(message)
                case frames.Status():
                    self._status(worker, message)
                case frames.Result():
                    self._results.append(message)
                    self._arrived.notify_all()
                case frames.Ready() | frames.Command():
                    pass

    def worker_ended(self, worker: int, nodes: set[str]) -> None:
        """Note that a worker has died: its nodes are not connected, its totals are kept."""
        with self._lock:
            for name, value in self._counters.pop(worker, {}).items():
                if "_total" in name:
                    self._ended[name] = self._ended.get(name, 0.0) + value
            for node in nodes:
                self._change(node, connected=False)

    def _node_up(self, message: frames.NodeUp) -> None:
        old = self._nodes.get(message.node)
        self._nodes[message.node] = NodeFact(
            node=message.node,
            boot_id=message.boot_id,
            connected=True,
            first_seen_ns=old.first_seen_ns if old else message.time_ns,
            last_seen_ns=message.time_ns,
            clock_offset_ns=message.offset_ns,
            agent_version=message.agent_version,
            gpu_source=message.gpu_source,
            note=message.note,
            driver_version=message.driver_version,
            gpus=tuple(
                GpuFact(uuid=uuid, index=index, model=model, pci_bus_id=pci, seen=seen)
                for uuid, index, model, pci, seen in message.gpus
            ),
        )
        self._unsaved.add(message.node)

    def _change(self, node: str, **changes: Any) -> None:
        fact = self._nodes.get(node)
        if fact is not None:
            self._nodes[node] = dataclasses.replace(fact, **changes)

    def _status(self, worker: int, message: frames.Status) -> None:
        self._counters[worker] = message.counters
        for row in message.ledger:
            self._ledger.put(row)
        for node, (seen_ns, offset_ns) in message.seen.items():
            self._change(node, last_seen_ns=seen_ns, clock_offset_ns=offset_ns)
