"""The journal: every incident opened, changed and resolved, in SQLite, each entry chained to the one before.

The chain (SHA-256 over the previous hash and the entry) shows tampering and loss. A file that is not a
database is put aside, loudly; where no file can be written at all, the journal lives in memory and says so.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from gpuvigil_collector import anchor, chain, database
from gpuvigil_collector.chain import GENESIS, entry_hash
from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_collector.incidents.tracker import Change
from gpuvigil_protos import log

_SCHEMA_VERSION: Final = 1
_PRUNE_EVERY: Final = 1000  # entries between two prunings: a delete each entry would double the writes
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS incidents(
  id TEXT PRIMARY KEY, state TEXT NOT NULL, opened_ns INTEGER NOT NULL, seen_ns INTEGER NOT NULL,
  body TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS incidents_state ON incidents(state, opened_ns);
CREATE TABLE IF NOT EXISTS journal(
  sequence INTEGER PRIMARY KEY, time_ns INTEGER NOT NULL, incident TEXT NOT NULL, what TEXT NOT NULL,
  detail TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS journal_incident ON journal(incident, sequence);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """An entry that is no change of an incident: about one (decisions, actions), or about none ("")."""

    time_ns: int
    what: str
    detail: str
    incident: str = ""


class Journal:
    """One writer (the brain's thread); `entries` may be called from any thread."""

    def __init__(self, directory: Path, *, entries_max: int, keep_s: float) -> None:
        self.entries_max, self.keep_s = entries_max, keep_s
        self.fault = ""
        self.failures = 0
        self.written = 0
        self._backlog: list[Change | Note] = []
        self._log = log.get("journal")
        self._uri = f"{(directory / chain.FILE).absolute().as_uri()}"
        self._database = self._open(directory / chain.FILE)
        newest = "SELECT sequence, hash FROM journal ORDER BY sequence DESC LIMIT 1"
        last: tuple[int, str] = self._database.execute(newest).fetchone() or (0, GENESIS)
        self._sequence, self.head = last

    def _open(self, path: Path) -> sqlite3.Connection:
        """Open the file; quarantine one that is broken; fall back to memory where no file can be used."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return _connect(self._uri)
        except sqlite3.OperationalError as error:  # locked, read-only, no space: the file itself may be well
            return self._in_memory(str(error))
        except sqlite3.DatabaseError as error:
            aside = path.with_suffix(f".broken-{time.time_ns()}")
            self.fault = f"journal was not readable ({error}) and is kept as {aside.name}; a new one began"
            self._log.error("journal_quarantined", error=str(error), kept_as=str(aside))
            try:
                database.move_aside(path, aside)
                return _connect(self._uri)
            except (OSError, sqlite3.Error) as again:
                return self._in_memory(str(again))
        except OSError as error:
            return self._in_memory(str(error))

    def _in_memory(self, why: str) -> sqlite3.Connection:
        self.fault = f"journal cannot be written ({why}): incidents are kept in memory only"
        self._log.error("journal_in_memory", error=why)
        self._uri = f"file:gpuvigil-journal-{id(self)}?mode=memory&cache=shared"
        return _connect(self._uri)

    def load(self, resolved_max: int) -> list[Incident]:
        """Return every open incident and the newest resolved ones, oldest first."""
        query = (
            "SELECT body FROM (SELECT * FROM incidents WHERE state = 'open' UNION ALL SELECT * FROM ("
            "SELECT * FROM incidents WHERE state = 'resolved' ORDER BY opened_ns DESC LIMIT ?)) "
            "ORDER BY opened_ns"
        )
        return list(self._decode(self._database.execute(query, (resolved_max,))))

    def _decode(self, rows: Iterable[tuple[str]]) -> Iterator[Incident]:
        for (body,) in rows:
            try:
                yield msgspec.json.decode(body, type=Incident)
            except msgspec.MsgspecError as error:
                self.fault = f"an incident in the journal could not be read: {error}"
                self._log.error("journal_incident_unreadable", error=str(error))

    def note(self, notes: Iterable[Change | Note]) -> None:
        """Append entries, in this order, with the next `record`."""
        self._backlog += notes

    def record(self, changes: list[Change], touched: Iterable[Incident]) -> None:
        """Append the changes and store the incidents, in one transaction on disk when this returns.

        A disk that fails is an operating fault: counted, shown in `fault`, and tried again with the next
        call; the changes wait in memory, `entries_max` of them at most.
        """
        self._backlog = [*self._backlog, *changes][-self.entries_max :]
        bodies = {incident.id: incident for incident in touched}
        bodies |= {entry.incident.id: entry.incident for entry in self._backlog if isinstance(entry, Change)}
        if not bodies and not self._backlog:
            return
        try:
            self._write(self._backlog, bodies.values())
        except sqlite3.Error as error:
            self.failures += 1
            if not self.fault:
                self._log.error("journal_write_failed", error=str(error))
            self.fault = f"journal cannot be written ({error}): {len(self._backlog)} changes wait in memory"
            return
        if self.fault.startswith("journal cannot be written") and "memory only" not in self.fault:
            self.fault = ""
        self._backlog = []

    @property
    def waiting(self) -> bool:
        """Tell whether changes wait for a disk that fails."""
        return bool(self._backlog)

    def _write(self, changes: list[Change | Note], incidents: Iterable[Incident]) -> None:
        sequence, head = self._sequence, self.head
        rows = []
        for change in changes:
            sequence += 1
            incident = change.incident.id if isinstance(change, Change) else change.incident
            entry = (sequence, change.time_ns, incident, change.what, change.detail)
            previous, head = head, entry_hash(head, entry)
            rows.append((*entry, previous, head))
        with self._database:
            self._database.executemany("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            self._database.executemany(
                "INSERT OR REPLACE INTO incidents VALUES (?, ?, ?, ?, ?)", (_row(one) for one in incidents)
            )
            if sequence // _PRUNE_EVERY != self._sequence // _PRUNE_EVERY:
                self._prune(sequence, changes[-1].time_ns)
        self._sequence, self.head = sequence, head
        self.written += len(rows)

    def _prune(self, sequence: int, now_ns: int) -> None:
        """Forget what is past retention; the oldest kept entry's `previous` anchors the chain."""
        oldest_ns = now_ns - int(self.keep_s * 1e9)
        self._database.execute(
            "DELETE FROM journal WHERE sequence <= ? OR time_ns < ?", (sequence - self.entries_max, oldest_ns)
        )
        self._database.execute(
            "DELETE FROM incidents WHERE state = 'resolved' AND id NOT IN (SELECT incident FROM journal)"
        )

    def entries(self, incident: str, limit: int = 1000) -> list[dict[str, Any]]:
        """Return the entries of one incident, or of none (""), oldest first. Any thread may ask."""
        query = "SELECT time_ns, what, detail FROM journal WHERE incident = ? ORDER BY sequence LIMIT ?"
        with closing(sqlite3.connect(self._uri, uri=True, timeout=2)) as opened:
            rows = opened.execute(query, (incident, limit)).fetchall()
        return [{"time_ns": time_ns, "what": what, "detail": detail} for time_ns, what, detail in rows]

    def anchored(self, now_ns: int) -> anchor.Head:
        """Return the head as it is now, for the anchor."""
        try:
            (oldest,) = self._database.execute("SELECT min(sequence) FROM journal").fetchone()
        except sqlite3.Error:  # a later head shows what this one cannot
            oldest = None
        return anchor.Head(time_ns=now_ns, sequence=self._sequence, hash=self.head, oldest=oldest or 0)

    @property
    def on_disk(self) -> bool:
        """Tell whether it is a file, not memory alone."""
        return "mode=memory" not in self._uri

    @property
    def sequence(self) -> int:
        """The newest entry's number."""
        return self._sequence

    def verify(self, heads: Sequence[anchor.Head] = ()) -> int | None:
        """Walk the chain; return the first sequence that does not fit, None when all do.

        With the anchored heads it finds also what was rewritten with its hashes, cut off or taken out; a
        journal that cannot be read does not fit.
        """
        walked = chain.walk(self._database, heads, self._retention)
        if walked.wrong is None and walked.entries and walked.head != self.head:
            return self._sequence
        return walked.wrong

    def walked(self, heads: Sequence[anchor.Head] = ()) -> chain.Walked:
        """Walk the chain as `verify` does, for readers. Any thread may call. Raises sqlite3.Error."""
        with closing(sqlite3.connect(self._uri, uri=True, timeout=2)) as opened:
            return chain.walk(opened, heads, self._retention)

    @property
    def _retention(self) -> chain.Retention:
        return chain.Retention(entries_max=self.entries_max, keep_s=self.keep_s)

    def close(self) -> None:
        """Close the file; further calls fail."""
        self._database.close()


def _row(incident: Incident) -> tuple[str, str, int, int, str]:
    body = msgspec.json.encode(incident).decode()
    return incident.id, incident.state, incident.opened_ns, incident.seen_ns, body


def _connect(uri: str) -> sqlite3.Connection:
    """Open, check and prepare the database. Raises sqlite3.DatabaseError when it is not one."""
    opened = sqlite3.connect(uri, uri=True, timeout=2, check_same_thread=False)
    probe = "UPDATE incidents SET state = state WHERE 0"
    return database.prepared(opened, _SCHEMA, _SCHEMA_VERSION, probe=probe)
