"""From received to durable: collects what came, and every flush interval makes it all durable at once.

The order is the promise: segment fsynced and renamed, then the ledger's transaction, then `durable` moves
and the agents are told. When the disk does not take it, nothing moves, the same unit is tried again, and
what waits in memory is bounded: beyond the bound `full` is true and streams are told to come back later.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from gpuvigil_collector.ingest.ack_latency import AckLatency
from gpuvigil_collector.ingest.hooks import AFTER_LEDGER_BEFORE_ACK, AFTER_RENAME_BEFORE_LEDGER, Hook
from gpuvigil_collector.ingest.intervals import IntervalSet
from gpuvigil_collector.ingest.ledger import Delivery, Key, Ledger, LedgerFile, Row, row_of
from gpuvigil_collector.ingest.segment_rows import EventRow, MetricRow
from gpuvigil_collector.ingest.segments import Segments, Unit
from gpuvigil_collector.ingest.settings import RecordingsConfig
from gpuvigil_protos import log

_ROW_OVERHEAD_BYTES: Final = 400
_log = log.get("recorder")


@dataclass(slots=True)
class _Flush:
    """One unit on its way: what the ledger will hold when it is durable, and what to tell then."""

    unit: Unit
    rows: list[Row]
    received: dict[Key, IntervalSet]
    after: list[Callable[[], None]]
    bytes: int
    arrived: list[float]


@dataclass(slots=True)
class _Pending:
    unit: Unit
    keys: set[Key] = field(default_factory=set)
    after: list[Callable[[], None]] = field(default_factory=list)
    bytes: int = 0
    arrived: list[float] = field(default_factory=list)


class Recorder:
    """The write side of one worker's recordings. All but the disk work happens on the event loop."""

    def __init__(
        self, config: RecordingsConfig, segments: Segments, file: LedgerFile, ledger: Ledger, hook: Hook
    ) -> None:
        self._config = config
        self._segments = segments
        self._file = file
        self._ledger = ledger
        self._hook = hook
        self.committed = max(segments.newest(), file.last_segment())
        self._next = self.committed + 1
        self._pending = self._new_pending()
        self._stuck: _Flush | None = None
        self.failing = False  # whether the disk refused the newest flush
        self.latency = AckLatency()
        self._on_durable: list[Callable[[frozenset[Key]], None]] = []
        self.counters = dict.fromkeys(("segments_total", "flush_failures_total", "flush_seconds_total"), 0.0)

    def _new_pending(self) -> _Pending:
        pending = _Pending(Unit(self._next))
        self._next += 1
        return pending

    def when_durable(self, tell: Callable[[frozenset[Key]], None]) -> None:
        """Call `tell` with the keys that moved after each flush."""
        self._on_durable.append(tell)

    @property
    def pending_bytes(self) -> int:
        """Return about how much memory waits for the disk."""
        return self._pending.bytes + (self._stuck.bytes if self._stuck else 0)

    @property
    def full(self) -> bool:
        """Tell whether no more may be taken."""
        return self.pending_bytes > self._config.pending_max

    def add_batch(self, key: Key, rows: list[MetricRow], digest: str, dictionary: bytes) -> None:
        """Take one batch's blocks; its dictionary goes to disk with it where it is not there yet."""
        self._pending.unit.metrics += rows
        self._pending.arrived.append(time.monotonic())
        if digest:
            self._pending.unit.dictionaries[digest] = dictionary
        self._pending.bytes += sum(len(row.values) + _ROW_OVERHEAD_BYTES for row in rows)
        self._pending.keys.add(key)

    def add_event(self, key: Key, row: EventRow) -> None:
        """Take one event."""
        self._pending.unit.events.append(row)
        self._pending.arrived.append(time.monotonic())
        self._pending.bytes += len(row.text) + _ROW_OVERHEAD_BYTES
        self._pending.keys.add(key)

    def add_change(self, key: Key, after: Callable[[], None] | None = None) -> None:
        """Make a key's gaps and refusals durable; `after` is called once they are."""
        self._pending.keys.add(key)
        if after is not None:
            self._pending.after.append(after)
            self._pending.bytes += _ROW_OVERHEAD_BYTES

    async def run(self, stop: asyncio.Event) -> None:
        """Flush at the configured interval until `stop`."""
        while not stop.is_set():
            await self.flush()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._config.flush_interval)

    def waits_for(self, node: str) -> bool:
        """Tell whether anything of this node is not durable yet."""
        stuck = self._stuck.received if self._stuck else {}
        return any(key[0] == node for keys in (self._pending.keys, stuck) for key in keys)

    async def flush(self) -> bool:
        """Make all that is pending durable. False when the disk refused; the same unit comes first again.

        One call at a time.
        """
        flush = self._stuck or self._take()
        if flush is None:
            return True
        self._stuck = flush
        started = time.monotonic()
        try:
            await asyncio.to_thread(self._write, flush)
        except (OSError, sqlite3.OperationalError) as error:
            if not self.counters["flush_failures_total"]:
                _log.error("recordings_refused", error=str(error), kept="in memory and in the agents' spools")
            self.counters["flush_failures_total"] += 1
            self.failing = True
            return False
        self.counters["flush_seconds_total"] += time.monotonic() - started
        self._done(flush)
        return True

    def _take(self) -> _Flush | None:
        pending = self._pending
        if not pending.keys and not pending.after:
            return None
        self._pending = self._new_pending()
        now_ns = time.time_ns()
        deliveries = {key: self._ledger.delivery(key) for key in pending.keys}
        return _Flush(
            unit=pending.unit,
            rows=[row_of(key, delivery, now_ns) for key, delivery in deliveries.items()],
            received={key: delivery.received.copy() for key, delivery in deliveries.items()},
            after=pending.after,
            bytes=pending.bytes,
            arrived=pending.arrived,
        )

    def _write(self, flush: _Flush) -> None:
        if flush.unit.metrics or flush.unit.events:
            self._segments.write(flush.unit)
        self._hook(AFTER_RENAME_BEFORE_LEDGER)
        self._file.commit(flush.rows, flush.unit.number)
        self._hook(AFTER_LEDGER_BEFORE_ACK)

    def _done(self, flush: _Flush) -> None:
        self._stuck, self.failing = None, False
        self.committed = flush.unit.number
        self.counters["segments_total"] += 1
        for key, received in flush.received.items():
            self._ledger.delivery(key).durable = received
            self._ledger.touch(key)
        self.latency.durable(flush.arrived, time.monotonic())
        for tell in flush.after:
            tell()
        for told in self._on_durable:
            told(frozenset(flush.received))


def recover(segments: Segments, file: LedgerFile) -> int:
    """Add the keys of segments that the ledger does not cover yet; return how many rows those were.

    This closes the gap of a crash between a segment's rename and the ledger's transaction.
    """
    last = file.last_segment()
    found: dict[Key, IntervalSet] = {}
    count = 0
    for key, sequence in segments.keys_after(last):
        found.setdefault(key, IntervalSet()).add(sequence, sequence)
        count += 1
    rows = []
    for key, added in found.items():
        delivery = file.load(key[0]).get(key)
        if delivery is None:
            delivery = Delivery()
        delivery.received.update(added)
        rows.append(row_of(key, delivery, time.time_ns()))
    if rows:
        file.commit(rows, segments.newest())
    return count
