"""The delivery ledger: which sequences of which (node, boot, class) are received, and which are durable.

In memory for the nodes that are here, in one SQLite file a worker for what is durable. A key's file row
changes only in the transaction that follows its segment's fsync, and `durable` moves only after it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from gpuvigil_collector.ingest.intervals import IntervalSet
from gpuvigil_collector.store_registry import set_aside
from gpuvigil_protos import log

BOOTS_PER_NODE: Final = 16
_log = log.get("ledger")
Key = tuple[str, str, str]
"""node, boot_id, delivery class (`metrics` or `events`)."""

Row = tuple[str, str, str, str, int, int, str, int]
"""One row of the file, as `row_of` makes it."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS delivery (
  node TEXT NOT NULL, boot_id TEXT NOT NULL, class TEXT NOT NULL,
  durable TEXT NOT NULL, duplicates INTEGER NOT NULL, gap_sequences INTEGER NOT NULL, refused TEXT NOT NULL,
  updated_ns INTEGER NOT NULL, PRIMARY KEY (node, boot_id, class)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS segment (last INTEGER NOT NULL);
"""


@dataclass(slots=True)
class Delivery:
    """One key's state. received holds what came, was refused, or was given up as a gap by the agent."""

    received: IntervalSet = field(default_factory=IntervalSet)
    durable: IntervalSet = field(default_factory=IntervalSet)
    duplicates: int = 0
    gap_sequences: int = 0
    refused: dict[str, int] = field(default_factory=dict)


def row_of(key: Key, delivery: Delivery, now_ns: int) -> Row:
    """Return what the file holds of a delivery once everything it has received is durable."""
    refused = msgspec.json.encode(delivery.refused).decode()
    text = delivery.received.to_text()
    return (*key, text, delivery.duplicates, delivery.gap_sequences, refused, now_ns)


class LedgerFile:
    """One worker's SQLite file, opened once to write (flush thread) and once to read (event loop)."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)

    @classmethod
    def own(cls, path: Path) -> LedgerFile:
        """Open this worker's own file. A damaged one is set aside: what the recordings hold is read back."""
        try:
            file = cls(path)
            (sound,) = file._db.execute("PRAGMA quick_check(1)").fetchone()
            if sound == "ok":
                return file
            file.close()
            reason = str(sound)
        except sqlite3.DatabaseError as error:
            reason = str(error)
        _log.error("ledger_damaged", path=str(path), error=reason, set_aside=str(set_aside(path)))
        return cls(path)

    def last_segment(self) -> int:
        """Return the newest segment's number that a commit has covered; 0 for none."""
        row = self._db.execute("SELECT max(last) FROM segment").fetchone()
        return int(row[0] or 0)

    def load(self, node: str) -> dict[Key, Delivery]:
        """Return what is durable for one node, over all its boots."""
        rows = self._db.execute(
            "SELECT boot_id, class, durable, duplicates, gap_sequences, refused FROM delivery WHERE node = ?",
            (node,),
        )
        return {(node, boot, name): _delivery(*rest) for boot, name, *rest in rows}

    def commit(self, rows: Iterable[Row], last_segment: int) -> None:
        """Write the changed keys' durable state and the newest segment's number, in one transaction."""
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO delivery VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.execute("DELETE FROM segment")
            self._db.execute("INSERT INTO segment VALUES (?)", (last_segment,))

    def prune(self) -> None:
        """Keep the newest boots of each node."""
        self._db.execute(
            "DELETE FROM delivery WHERE (node, boot_id) IN (SELECT node, boot_id FROM (SELECT node, boot_id, "
            "row_number() OVER (PARTITION BY node ORDER BY max(updated_ns) DESC) AS place FROM delivery "
            "GROUP BY node, boot_id) WHERE place > ?)",
            (BOOTS_PER_NODE,),
        )

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _delivery(durable: str, duplicates: int, gap_sequences: int, refused: str) -> Delivery:
    taken = IntervalSet.from_text(durable)
    return Delivery(
        received=taken.copy(),
        durable=taken,
        duplicates=duplicates,
        gap_sequences=gap_sequences,
        refused=msgspec.json.decode(refused, type=dict[str, int]),
    )


class Ledger:
    """All deliveries of the nodes that this worker has; loads a node's on its first stream.

    files: this worker's own and its siblings', all of them only read here.
    """

    def __init__(self, files: Iterable[LedgerFile]) -> None:
        self._files = list(files)
        self._deliveries: dict[Key, Delivery] = {}
        self._nodes: dict[str, set[Key]] = {}
        self._changed: set[Key] = set()

    def claim(self, node: str) -> None:
        """Load the node's durable state, its own and what siblings took before."""
        if node in self._nodes:
            return
        self._nodes[node] = set()
        for file in self._files:
            for key, delivery in file.load(node).items():
                known = self.delivery(key)
                known.received.update(delivery.received)
                known.durable.update(delivery.durable)
                known.duplicates = max(known.duplicates, delivery.duplicates)
                known.gap_sequences = max(known.gap_sequences, delivery.gap_sequences)
                for reason, count in delivery.refused.items():
                    known.refused[reason] = max(known.refused.get(reason, 0), count)
                self._changed.add(key)

    def release(self, node: str) -> None:
        """Forget a node that has no stream and nothing that waits to become durable."""
        for key in self._nodes.pop(node, ()):
            del self._deliveries[key]
            self._changed.discard(key)

    def delivery(self, key: Key) -> Delivery:
        """Return the state of one key of a claimed node, new where there was none."""
        found = self._deliveries.get(key)
        if found is None:
            found = self._deliveries[key] = Delivery()
            self._nodes[key[0]].add(key)
        return found

    def boots(self, node: str) -> int:
        """Return how many boots of a claimed node are known."""
        return len({key[1] for key in self._nodes[node]})

    @property
    def nodes(self) -> frozenset[str]:
        """Return the nodes claimed now."""
        return frozenset(self._nodes)

    def touch(self, key: Key) -> None:
        """Note that a key's state is to be told to the brain."""
        self._changed.add(key)

    def has_news(self, node: str) -> bool:
        """Tell whether anything of a claimed node was not told yet."""
        return not self._changed.isdisjoint(self._nodes[node])

    def changes(self) -> list[tuple[Key, Delivery]]:
        """Return what changed since the last call."""
        changed, self._changed = self._changed, set()
        return [(key, self._deliveries[key]) for key in changed]
