"""The registry of known nodes: what the collector still knows after a restart, so that silence shows.

One SQLite file. A node is written when it says Hello and when it leaves; the newest time it was heard, at
most once a minute. Nothing here is needed for delivery, so an unreadable file is set aside, not fatal.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from pathlib import Path

import msgspec

from gpuvigil_collector.database import move_aside
from gpuvigil_detectors.base import NodeFact
from gpuvigil_protos import log

_SCHEMA = "CREATE TABLE IF NOT EXISTS node (node TEXT PRIMARY KEY, fact TEXT NOT NULL) WITHOUT ROWID"
_log = log.get("registry")


class Registry:
    """Known nodes on disk. Used from one thread at a time. A disk that fails is counted, never fatal."""

    def __init__(self, path: Path) -> None:
        self._db = open_or_set_aside(path, _SCHEMA)
        self.failures = 0

    def load(self) -> dict[str, NodeFact]:
        """Return all known nodes, none of them connected."""
        rows = self._db.execute("SELECT fact FROM node ORDER BY node")
        facts = [fact for (text,) in rows if (fact := _fact(text)) is not None]
        return {fact.node: dataclasses.replace(fact, connected=False) for fact in facts}

    def save(self, facts: list[NodeFact]) -> bool:
        """Write these nodes in one transaction; False when the disk is full or failing: try again later."""
        rows = [(fact.node, msgspec.json.encode(fact).decode()) for fact in facts]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:
                self._db.executemany("INSERT OR REPLACE INTO node VALUES (?, ?)", rows)
        except sqlite3.OperationalError as error:
            if not self.failures:
                _log.error("registry_not_written", error=str(error))
            self.failures += 1
            return False
        return True

    def forget(self, node: str) -> None:
        """Take a node out: it was decommissioned. Where the disk fails, a restart knows it again."""
        try:
            self._db.execute("DELETE FROM node WHERE node = ?", (node,))
        except sqlite3.OperationalError:
            self.failures += 1

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _fact(text: str) -> NodeFact | None:
    """Read one row; one that is no node is left out: it comes again with the node's next Hello."""
    try:
        return msgspec.json.decode(text, type=NodeFact)
    except msgspec.MsgspecError as error:
        _log.error("registry_row_unreadable", error=str(error))
        return None


def open_or_set_aside(path: Path, schema: str) -> sqlite3.Connection:
    """Open a file that is no more than a help; an unreadable one is kept aside, and a new one begins."""
    try:
        return _open(path, schema)
    except sqlite3.DatabaseError as error:
        aside = set_aside(path)
        _log.error("file_unreadable", path=str(path), error=str(error), set_aside=str(aside))
        return _open(path, schema)


def set_aside(path: Path) -> Path:
    """Keep an unreadable SQLite file under another name, its log with it; return that name."""
    aside = path.with_suffix(".broken")
    move_aside(path, aside)
    return aside


def _open(path: Path, schema: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute(schema)
    (sound,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if sound != "ok":
        db.close()
        raise sqlite3.DatabaseError(sound)
    return db
