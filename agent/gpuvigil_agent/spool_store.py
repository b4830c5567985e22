"""The spool's file: SQLite in WAL with synchronous=FULL. One thread owns a store; every method may block.

A row's key orders it: boot number, class, sequence. Each row has its own CRC, checked when it is read back.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from gpuvigil_agent.ledger import CLASSES, METRICS

DEAD_LETTERS_MAX: Final = 1000
TRIM_ROWS: Final = 64
_SEQUENCE_BITS: Final = 40
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS boots (number INTEGER PRIMARY KEY, boot_id TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS rows (key INTEGER PRIMARY KEY, version INTEGER NOT NULL, samples INTEGER NOT NULL,
  crc INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS dictionaries (boot_id TEXT, version INTEGER, payload BLOB NOT NULL,
  PRIMARY KEY (boot_id, version));
CREATE TABLE IF NOT EXISTS gaps (boot_id TEXT, class INTEGER, first INTEGER, last INTEGER NOT NULL,
  reason TEXT NOT NULL, samples INTEGER NOT NULL, PRIMARY KEY (boot_id, class, first));
CREATE TABLE IF NOT EXISTS dead_letters (id INTEGER PRIMARY KEY, boot_id TEXT, class INTEGER,
  sequence INTEGER, reason TEXT, payload BLOB);
"""


class Row(NamedTuple):
    """One message in its class's sequence. payload is a serialized Batch or Event."""

    boot_id: str
    number: int  # the class: METRICS or EVENTS
    sequence: int
    version: int  # of the dictionary; 0 for events
    samples: int
    payload: bytes


class Gap(NamedTuple):
    """Sequences first..last of one class are gone."""

    boot_id: str
    number: int
    first: int
    last: int
    reason: str
    samples: int


def row_crc(key: int, version: int, samples: int, payload: bytes) -> int:
    """CRC-32 of a row under its key: a row moved under another key is as wrong as a flipped bit."""
    return zlib.crc32(payload, zlib.crc32(f"{key} {version} {samples}".encode()))


def merged(rows: Iterable[tuple[str, int, int, int]], reason: str) -> list[Gap]:
    """Turn (boot_id, class, sequence, samples) in order into the fewest gaps."""
    gaps: list[Gap] = []
    for boot_id, number, sequence, samples in rows:
        last = gaps[-1] if gaps else None
        if last and (last.boot_id, last.number, last.last + 1) == (boot_id, number, sequence):
            gaps[-1] = last._replace(last=sequence, samples=last.samples + samples)
        else:
            gaps.append(Gap(boot_id, number, sequence, sequence, reason, samples))
    return gaps


class Store:
    """The open file. sqlite3 errors go to the caller: spool.py decides between waiting and quarantine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # one thread uses it at a time: the opener's first, the spool thread's from then on
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=2)
        try:
            self._prepare()
        except sqlite3.Error:
            self._db.close()
            raise

    def _prepare(self) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=256",
                       "journal_size_limit=1048576", "cache_size=-512", "temp_store=MEMORY"):  # fmt: skip
            self._db.execute(f"PRAGMA {pragma}")
        self._db.executescript(_SCHEMA)
        self._boots: dict[str, int] = {
            boot: number for number, boot in self._db.execute("SELECT number, boot_id FROM boots")
        }

    def begin(self) -> None:
        """Start a transaction."""
        self._db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """End it; when this returns, the rows survive a power cut."""
        self._db.execute("COMMIT")

    def rollback(self) -> None:
        """Undo it, also where SQLite has already done so."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._boots = {boot: number for number, boot in self._db.execute("SELECT number, boot_id FROM boots")}

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def meta(self, name: str) -> str | None:
        """Return a remembered fact."""
        found = self._db.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
        return str(found[0]) if found else None

    def remember(self, name: str, value: str) -> None:
        """Store a fact."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def _base(self, boot_id: str, number: int) -> int:
        if boot_id not in self._boots:
            top = self._db.execute("SELECT IFNULL(MAX(number), 0) + 1 FROM boots").fetchone()[0]
            self._db.execute("INSERT INTO boots VALUES (?, ?)", (top, boot_id))
            self._boots[boot_id] = top
        return (self._boots[boot_id] * 4 + number) << _SEQUENCE_BITS

    def put(self, row: Row) -> None:
        """Write one row, again without harm."""
        key = self._base(row.boot_id, row.number) + row.sequence
        crc = row_crc(key, row.version, row.samples, row.payload)
        values = (key, row.version, row.samples, crc, row.payload)
        self._db.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?)", values)

    def put_dictionary(self, boot_id: str, version: int, payload: bytes) -> None:
        """Keep a dictionary as long as rows of its boot need it."""
        self._db.execute("INSERT OR REPLACE INTO dictionaries VALUES (?, ?, ?)", (boot_id, version, payload))

    def dictionary(self, boot_id: str, version: int) -> bytes | None:
        """Return a dictionary, or None when it is lost."""
        found = self._db.execute("SELECT payload FROM dictionaries WHERE boot_id=? AND version=?",
                                 (boot_id, version)).fetchone()  # fmt: skip
        return bytes(found[0]) if found else None

    def put_gap(self, gap: Gap) -> None:
        """Write one gap, again without harm."""
        self._db.execute("INSERT OR REPLACE INTO gaps VALUES (?, ?, ?, ?, ?, ?)", gap)

    def gaps(self) -> list[Gap]:
        """Return every gap that is not yet durable. Raises ValueError for what is none."""
        found = [Gap(*row) for row in self._db.execute("SELECT * FROM gaps ORDER BY boot_id, class, first")]
        for gap in found:
            if gap.number not in CLASSES or not 1 <= gap.first <= gap.last or gap.samples < 0:
                raise ValueError(f"gap {gap}")
        return found

    def delete_durable(self, boot_id: str, number: int, durable: int) -> int:
        """Delete rows and gaps up to the watermark; returns how many rows went."""
        base = self._base(boot_id, number)
        self._db.execute(
            "DELETE FROM gaps WHERE boot_id=? AND class=? AND last<=?", (boot_id, number, durable)
        )
        gone = self._db.execute("DELETE FROM rows WHERE key>? AND key<=?", (base, base + durable))
        return int(gone.rowcount)

    def bury(self, boot_id: str, number: int, sequence: int, reason: str) -> bool:
        """Move a refused row to the dead letters; False when it is not here."""
        key = self._base(boot_id, number) + sequence
        found = self._db.execute("SELECT payload FROM rows WHERE key=?", (key,)).fetchone()
        if found is None:
            return False
        self._db.execute(
            "INSERT INTO dead_letters (boot_id, class, sequence, reason, payload) VALUES (?, ?, ?, ?, ?)",
            (boot_id, number, sequence, reason, found[0]),
        )
        self._db.execute("DELETE FROM dead_letters WHERE id <= (SELECT MAX(id) FROM dead_letters) - ?",
                         (DEAD_LETTERS_MAX,))  # fmt: skip
        self._db.execute("DELETE FROM rows WHERE key=?", (key,))
        return True

    def used_bytes(self) -> int:
        """Return the pages in use; free pages are used again before the file grows."""
        (pages,), (free,), (size,) = (
            self._db.execute(f"PRAGMA {name}").fetchone()
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def trim(self) -> list[Gap]:
        """Delete the oldest rows: metrics first, events only when no metrics are left."""
        metrics = f"((key >> {_SEQUENCE_BITS}) & 3) = {METRICS}"
        for condition in (metrics, f"NOT {metrics}"):
            chosen = self._db.execute(
                f"SELECT key, samples FROM rows WHERE {condition} ORDER BY key LIMIT ?",  # noqa: S608 - own text
                (TRIM_ROWS,),
            ).fetchall()
            if chosen:
                self._db.executemany("DELETE FROM rows WHERE key=?", [(key,) for key, _ in chosen])
                return merged(((*self._named(key), samples) for key, samples in chosen), "spool_full")
        return []

    def _named(self, key: int) -> tuple[str, int, int]:
        boots = {number: boot for boot, number in self._boots.items()}
        high, sequence = key >> _SEQUENCE_BITS, key & ((1 << _SEQUENCE_BITS) - 1)
        return boots[high // 4], high % 4, sequence

    def read(self, boot_id: str, number: int, after: int, limit: int) -> tuple[list[Row], list[Row]]:
        """Return up to `limit` rows above `after`: the sound ones, and the corrupt ones."""
        sound: list[Row] = []
        corrupt: list[Row] = []
        if boot_id not in self._boots:
            return sound, corrupt
        base = self._base(boot_id, number)
        for key, version, samples, crc, payload in self._db.execute(
            "SELECT * FROM rows WHERE key>? AND key<? ORDER BY key LIMIT ?",
            (base + after, base + (1 << _SEQUENCE_BITS), limit),
        ):
            row = Row(boot_id, number, key - base, version, samples, payload)
            whole = isinstance(payload, bytes) and crc == row_crc(key, version, samples, payload)
            (sound if whole else corrupt).append(row)
        return sound, corrupt

    def delete(self, rows: Iterable[Row]) -> None:
        """Delete rows by their keys."""
        keys = [(self._base(row.boot_id, row.number) + row.sequence,) for row in rows]
        self._db.executemany("DELETE FROM rows WHERE key=?", keys)

    def counts(self) -> Iterator[tuple[str, int, int, int, int]]:
        """Yield (boot_id, class, rows, lowest and highest sequence) of everything that waits."""
        for high, count, low, top in self._db.execute(
            f"SELECT key >> {_SEQUENCE_BITS}, COUNT(*), MIN(key), MAX(key) FROM rows GROUP BY 1 ORDER BY 1"  # noqa: S608
        ):
            boot_id, number, sequence = self._named(top)
            if number not in CLASSES or high != top >> _SEQUENCE_BITS:
                raise ValueError(f"a row of class {number}")
            yield boot_id, number, count, sequence - (top - low), sequence

    def forget_boots(self, current: str) -> None:
        """Drop boots and dictionaries that no row needs any more."""
        for boot_id, number in list(self._boots.items()):
            low = (number * 4) << _SEQUENCE_BITS
            used = self._db.execute("SELECT 1 FROM rows WHERE key>=? AND key<? LIMIT 1",
                                    (low, ((number + 1) * 4) << _SEQUENCE_BITS)).fetchone()  # fmt: skip
            if boot_id != current and not used:
                self._db.execute("DELETE FROM boots WHERE number=?", (number,))
                self._db.execute("DELETE FROM dictionaries WHERE boot_id=?", (boot_id,))
                del self._boots[boot_id]
