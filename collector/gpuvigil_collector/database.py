"""SQLite files that outlive a crash: opened, checked and prepared; one that is broken is kept aside."""

from __future__ import annotations

import sqlite3
from pathlib import Path


def prepared(
    database: sqlite3.Connection, schema: str, version: int, *, probe: str, new: bool = True
) -> sqlite3.Connection:
    """Check a database and bring its schema in; an empty file is one only where that may be (`new`).

    probe: a statement that writes nothing and asks for the write lock. Closes the database where it raises:
    sqlite3.OperationalError when it cannot be used now, sqlite3.DatabaseError when it is not ours.
    """
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
        (seen,) = database.execute("PRAGMA user_version").fetchone()
        if found != "ok" or seen not in ({0, version} if new else {version}):
            raise sqlite3.DatabaseError(f"check says {found}, schema version {seen}")
        database.executescript(schema + f"PRAGMA user_version = {version};")
        database.execute(probe)
    except sqlite3.Error:
        database.close()
        raise
    database.commit()
    return database


def move_aside(path: Path, aside: Path) -> None:
    """Keep a broken file under another name; its log goes. Raises OSError."""
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
