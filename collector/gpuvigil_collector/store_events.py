"""The events on their way to the brain: each once, and which of them were judged, over restarts too.

A brain may die between an event's arrival and the journal's entry. So what was judged is written down after
the tick that judged it, and a worker tells its newest recorded events again when it starts: those that were
not judged are news, the others only rebuild memory. The file is not synced: after a power cut an event may
be judged twice, which feeds the incident that it opened.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from pathlib import Path
from typing import Final

from gpuvigil_collector.ingest import frames
from gpuvigil_collector.ingest.intervals import IntervalSet
from gpuvigil_collector.store_registry import open_or_set_aside
from gpuvigil_detectors.base import FactEvent
from gpuvigil_protos import log

EVENTS_MAX: Final = 100_000
BOOTS_PER_NODE: Final = 16
_KEEP_NS: Final = 48 * 3600 * 1_000_000_000
_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS judged (node TEXT NOT NULL, boot_id TEXT NOT NULL, sequences TEXT NOT NULL, "
    "updated_ns INTEGER NOT NULL, PRIMARY KEY (node, boot_id)) WITHOUT ROWID"
)
_log = log.get("store")


class Sets:
    """One set of sequences for each boot of each node; of the oldest boots no more is known."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, IntervalSet]] = {}

    def get(self, node: str, boot_id: str) -> IntervalSet:
        """Return one boot's set, empty when new."""
        boots = self._of.setdefault(node, {})
        if boot_id not in boots and len(boots) >= BOOTS_PER_NODE:
            del boots[next(iter(boots))]
        return boots.setdefault(boot_id, IntervalSet())

    def forget(self, node: str) -> None:
        """Forget a node."""
        self._of.pop(node, None)


class EventQueue:
    """Not thread-safe: the store holds its lock, but for `write`, which only the brain's thread calls."""

    def __init__(self, path: Path) -> None:
        self._file = _JudgedFile(path)
        self._judged = self._file.load()
        self._seen = Sets()
        self._waiting: deque[frames.Event] = deque()
        self._handed: deque[tuple[str, str, int]] = deque(maxlen=EVENTS_MAX)
        self.dropped = 0
        self.failures = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, message: frames.Event) -> bool:
        """Queue an event; False when it is here already: workers tell again what is not surely known."""
        if not self._seen.get(message.node, message.boot_id).add(message.sequence, message.sequence):
            return False
        if len(self._waiting) >= EVENTS_MAX:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(message)
        return True

    def take(self) -> tuple[FactEvent, ...]:
        """Hand out what waits, in the order in which it came."""
        taken, self._waiting = self._waiting, deque()
        events = []
        for message in taken:
            judged = message.sequence in self._judged.get(message.node, message.boot_id)
            events.append(_fact_event(message, judged=judged))
            if not judged:
                self._handed.append((message.node, message.boot_id, message.sequence))
        return tuple(events)

    def judged(self) -> list[tuple[str, str, str]]:
        """Note that what was handed out is judged; return the rows to write: node, boot, sequences."""
        keys = dict.fromkeys((node, boot_id) for node, boot_id, _ in self._handed)
        for node, boot_id, sequence in self._handed:
            self._judged.get(node, boot_id).add(sequence, sequence)
        self._handed.clear()
        return [(*key, self._judged.get(*key).to_text()) for key in keys]

    def write(self, rows: list[tuple[str, str, str]]) -> None:
        """Write what `judged` returned. A disk that fails is counted: after a restart they are news again."""
        try:
            self._file.save(rows)
        except sqlite3.OperationalError as error:
            if not self.failures:
                _log.error("judged_not_written", error=str(error))
            self.failures += 1

    def forget(self, node: str) -> None:
        """Forget a node; `forget_written` does the same on disk."""
        self._seen.forget(node)
        self._judged.forget(node)

    def forget_written(self, node: str) -> None:
        """Take a node out of the file. A disk that fails is counted: the row goes when it is old."""
        try:
            self._file.forget(node)
        except sqlite3.OperationalError:
            self.failures += 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _JudgedFile:
    def __init__(self, path: Path) -> None:
        self._db = open_or_set_aside(path, _SCHEMA)

    def load(self) -> Sets:
        """Forget what is old, return the rest."""
        self._db.execute("DELETE FROM judged WHERE updated_ns < ?", (time.time_ns() - _KEEP_NS,))
        found = Sets()
        query = "SELECT node, boot_id, sequences FROM judged ORDER BY updated_ns"
        for node, boot_id, text in self._db.execute(query):
            found.get(node, boot_id).update(IntervalSet.from_text(text))
        return found

    def forget(self, node: str) -> None:
        self._db.execute("DELETE FROM judged WHERE node = ?", (node,))

    def save(self, rows: list[tuple[str, str, str]]) -> None:
        now_ns = time.time_ns()
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            self._db.executemany(
                "INSERT OR REPLACE INTO judged VALUES (?, ?, ?, ?)", [(*row, now_ns) for row in rows]
            )

    def close(self) -> None:
        self._db.close()


def _fact_event(message: frames.Event, *, judged: bool) -> FactEvent:
    return FactEvent(
        node=message.node,
        time_ns=message.time_ns,
        kind=message.kind,
        origin=message.origin,
        entity=message.entity,
        code=message.code,
        text=message.text,
        fields=message.fields,
        synthetic=message.synthetic,
        boot_id=message.boot_id,
        judged=judged,
    )
