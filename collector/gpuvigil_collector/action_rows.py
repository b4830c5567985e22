"""Rows of the write-ahead store: the schema, opening and checking the file, actions to rows and back."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

import msgspec

from gpuvigil_collector.action import ENDED, Action, Past
from gpuvigil_collector.database import prepared

KEEP_NS: Final = 28 * 86400 * 1_000_000_000
_SCHEMA_VERSION: Final = 1
_BUSY_S: Final = 0.5
EFFECT: Final = ("intended", "issued", "ambiguous", "done")
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS actions(
  id TEXT PRIMARY KEY, state TEXT NOT NULL, kind TEXT NOT NULL, node TEXT NOT NULL,
  changed_ns INTEGER NOT NULL, holds INTEGER NOT NULL, body TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS actions_state ON actions(state, changed_ns);
CREATE TABLE IF NOT EXISTS transitions(sequence INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS cases(id TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
"""


def connect(path: Path, *, new: bool) -> sqlite3.Connection:
    """Open, check and prepare the database; an empty file is one only where there was none (`new`).

    Raises sqlite3.OperationalError when it cannot be used now, sqlite3.DatabaseError when it is not ours.
    """
    opened = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False)
    probe = "UPDATE cases SET id = id WHERE 0"
    return prepared(opened, _SCHEMA, _SCHEMA_VERSION, probe=probe, new=new)


def put(database: sqlite3.Connection, action: Action) -> None:
    """Write the action, its transition, and what a release ends; within the caller's transaction."""
    proposal, body = action.proposal, msgspec.json.encode(action).decode()
    holds = proposal.kind == "hold" and action.state in EFFECT
    row = (proposal.id, action.state, proposal.kind, proposal.node, action.changed_ns, int(holds), body)
    database.execute("INSERT OR REPLACE INTO actions VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    database.execute("INSERT INTO transitions(body) VALUES (?)", (body,))
    if proposal.kind == "release" and action.state == "done":
        database.execute("UPDATE actions SET holds = 0 WHERE node = ?", (proposal.node,))


def prune(database: sqlite3.Connection, now_ns: int) -> None:
    """Forget what ended more than 28 days ago; a hold that stands is kept."""
    marks = ",".join("?" * len(ENDED))
    query = f"DELETE FROM actions WHERE holds = 0 AND changed_ns < ? AND state IN ({marks})"  # noqa: S608
    with database:
        database.execute(query, (now_ns - KEEP_NS, *sorted(ENDED)))


def action(body: str) -> Action:
    """Read one action. Raises msgspec.MsgspecError."""
    return msgspec.json.decode(body, type=Action)


def past(action: Action, *, holds: bool) -> Past:
    """What the kernel may know of it."""
    asked = action.proposal
    return Past(
        id=asked.id,
        kind=asked.kind,
        node=asked.node,
        domain=action.domain,
        partition=action.partition,
        job=asked.job,
        gpus=asked.gpus,
        at_ns=action.issued_ns or action.changed_ns,
        open=holds,
        case=asked.case,
        jobs=action.interrupts,
    )
