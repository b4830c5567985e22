"""The write-ahead store: every action's transition, and the cases, on disk before what follows from them.

A store that is broken, locked, full, of another version or gone gives no past, and without a past the kernel
allows nothing. What was lost is never replaced by an empty file in silence: `actions.mark` beside it says
that there was one, until a person removes the mark.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from gpuvigil_collector import action_rows
from gpuvigil_collector.action import HARMLESS, Action, Past
from gpuvigil_collector.database import move_aside
from gpuvigil_protos import log

_AGAIN_S: Final = 5.0  # a store that cannot be opened is tried again so often
_PRUNE_EVERY: Final = 200  # writes
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One transition that the journal has not taken yet: the action as it became."""

    sequence: int
    action: Action


class ActionStore:
    """Any thread may call. What cannot be read or written gives None or False and is told in `fault`."""

    def __init__(self, directory: Path) -> None:
        self.fault = ""
        self._path, self._mark = directory / "actions.sqlite", directory / "actions.mark"
        self._log = log.get("actions")
        self._lock = threading.RLock()
        self._database: sqlite3.Connection | None = None
        self._tried = float("-inf")
        self._writes = 0
        self._use(lambda _: None)

    def write(self, action: Action) -> bool:
        """Keep the action and its transition; True once both are on disk."""

        def put(database: sqlite3.Connection) -> bool:
            with database:
                action_rows.put(database, action)
            self._writes += 1
            if self._writes % _PRUNE_EVERY == 0:
                action_rows.prune(database, action.changed_ns)
            return True

        return bool(self._use(put))

    def get(self, action_id: str) -> Action | None:
        """Return one action; None where there is none, or nothing can be read (then `fault` says so)."""
        found = self._decoded(self._bodies("SELECT body FROM actions WHERE id = ?", (action_id,)))
        return found[0] if found else None

    def unended(self) -> list[Action] | None:
        """Return what was intended, issued or ambiguous when it was last written, oldest first."""
        query = (
            "SELECT body FROM actions WHERE state IN ('intended', 'issued', 'ambiguous') ORDER BY changed_ns"
        )
        return self._decoded(self._bodies(query))

    def past(self, now_ns: int) -> tuple[Past, ...] | None:
        """Return what had, or may have had, an effect in the last 28 days, and every hold that stands still.

        None when it cannot be read whole: then nothing is known, and nothing may be done.
        """
        marks = ",".join("?" * len(action_rows.EFFECT)), ",".join("?" * len(HARMLESS))
        query = (
            f"SELECT body, holds FROM actions WHERE holds = 1 OR (state IN ({marks[0]}) "  # noqa: S608
            f"AND kind NOT IN ({marks[1]}) AND changed_ns >= ?) ORDER BY changed_ns"
        )
        values = (*action_rows.EFFECT, *sorted(HARMLESS), now_ns - action_rows.KEEP_NS)
        rows = self._use(lambda database: database.execute(query, values).fetchall())
        actions = self._decoded(None if rows is None else [body for body, _ in rows])
        if rows is None or actions is None:
            return None
        holds = [bool(row[1]) for row in rows]
        return tuple(action_rows.past(one, holds=held) for one, held in zip(actions, holds, strict=True))

    def no_longer_held(self, action_id: str) -> bool:
        """Count a hold as gone: somebody else took it away. True once it is on disk."""
        return self._change("UPDATE actions SET holds = 0 WHERE id = ?", (action_id,))

    def untold(self, limit: int = 1000) -> list[Told]:
        """Return the transitions that the journal has not taken, oldest first."""
        query = "SELECT sequence, body FROM transitions ORDER BY sequence LIMIT ?"
        rows = self._use(lambda database: database.execute(query, (limit,)).fetchall()) or []
        actions = self._decoded([body for _, body in rows]) or []
        return [Told(sequence=row[0], action=one) for row, one in zip(rows, actions, strict=False)]

    def told(self, sequence: int) -> bool:
        """Forget the transitions up to this one: the journal has them on disk."""
        return self._change("DELETE FROM transitions WHERE sequence <= ?", (sequence,))

    def put_case(self, case_id: str, body: str) -> bool:
        """Keep a case's record, JSON that only its writer reads; True once it is on disk."""
        return self._change("INSERT OR REPLACE INTO cases VALUES (?, ?)", (case_id, body))

    def forget_case(self, case_id: str) -> bool:
        """Forget a case."""
        return self._change("DELETE FROM cases WHERE id = ?", (case_id,))

    def cases(self) -> dict[str, str] | None:
        """Return every case's record by its id; None when they cannot be read."""
        rows = self._use(lambda database: database.execute("SELECT id, body FROM cases").fetchall())
        return None if rows is None else dict(rows)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database, self._tried = None, float("inf")

    def _change(self, statement: str, values: tuple[str | int, ...]) -> bool:
        """Change rows; True once that is on disk."""

        def change(database: sqlite3.Connection) -> bool:
            with database:
                database.execute(statement, values)
            return True

        return bool(self._use(change))

    def _use(self, work: Callable[[sqlite3.Connection], _T]) -> _T | None:
        """Do `work` on the open file; the one place where its faults end."""
        with self._lock:
            try:
                database = self._opened()
                if database is None:
                    return None
                result = work(database)
            except (sqlite3.Error, OSError) as error:
                self._failed(f"actions cannot be kept ({error}): nothing is done")
                if not isinstance(error, sqlite3.OperationalError | OSError):
                    self._look_again()
                return None
            if self.fault.startswith("actions cannot be kept"):
                self.fault = ""
            return result

    def _look_again(self) -> None:
        """Close a file that turned out broken: the next use opens it, checks it and puts it aside."""
        if self._database is not None:
            self._database.close()
            self._database, self._tried = None, float("-inf")

    def _failed(self, why: str) -> None:
        if why != self.fault:
            self._log.error("actions_fault", why=why)
        self.fault = why

    def _decoded(self, bodies: list[str] | None) -> list[Action] | None:
        """Read the bodies; None when one of them cannot be read: a part of the past is not the past."""
        if bodies is None:
            return None
        try:
            return [action_rows.action(body) for body in bodies]
        except msgspec.MsgspecError as error:
            self._failed(
                f"an action on record cannot be read ({error}): nothing is done until a person has looked at "
                f"the nodes and removed {self._path.name} and {self._mark.name}"
            )
            return None

    def _bodies(self, query: str, values: tuple[object, ...] = ()) -> list[str] | None:
        """Return the first column of a query, None when it cannot be read."""
        return self._use(lambda database: [row[0] for row in database.execute(query, values)])

    def _opened(self) -> sqlite3.Connection | None:
        """Return the open file, or try again when it is time."""
        if self._database is None and time.monotonic() - self._tried >= _AGAIN_S:
            self._tried = time.monotonic()
            self._database = self._open()
        return self._database

    def _open(self) -> sqlite3.Connection | None:
        """Open it; put aside one that is broken. Raises sqlite3.OperationalError: the file may be well."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._mark.exists() and not self._path.exists():
            self._failed(
                f"{self._path.name} is gone: what was done in 28 days is not known, so nothing is done until "
                f"a person has looked at the nodes and removed {self._mark.name}"
            )
            return None
        try:
            database = action_rows.connect(self._path, new=not self._mark.exists())
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            self._mark.touch()
            aside = self._path.with_suffix(f".broken-{time.time_ns()}")
            move_aside(self._path, aside)
            self._failed(
                f"{self._path.name} was not readable ({error}) and is kept as {aside.name}: nothing is done "
                f"until a person has looked at the nodes and removed {self._mark.name}"
            )
            return None
        self._mark.touch()
        self.fault = ""
        return database
