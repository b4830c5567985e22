"""The lease in a file: for collectors on one host, which share one monotonic clock."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from gpuvigil_collector.lease import Clock, Held, RenewedLease

_SCHEMA_VERSION: Final = 1
_BUSY_S: Final = 1.0
_SCHEMA: Final = """
CREATE TABLE lease(
  one INTEGER PRIMARY KEY CHECK(one = 1), holder TEXT NOT NULL, generation INTEGER NOT NULL,
  until_steady_ns INTEGER NOT NULL, boot TEXT NOT NULL, lease_ns INTEGER NOT NULL) STRICT;
"""


@dataclass(frozen=True, slots=True)
class _Row:
    holder: str
    generation: int
    until_steady_ns: int
    boot: str
    lease_ns: int


class SqliteLease(RenewedLease):
    """A lease in a file that all collectors of one host share.

    A file that is broken, of another version or gone is never made anew over a holder that may still act: a
    new file is nobody's for one whole lease, and begins with a generation that no older file can have had.
    """

    errors = (sqlite3.Error, OSError, ValueError)

    def __init__(
        self,
        path: Path,
        *,
        lease_s: float = 30.0,
        holder: str = "",
        clock: Clock | None = None,
        boot: str = "",
    ) -> None:
        super().__init__(path.name, int(lease_s * 1e9), holder, clock)
        self._path, self._boot = path, boot or _boot_id()
        self._seen: tuple[_Row, int] | None = None  # another boot's row and when we first saw it so

    def _try(self) -> None:
        steady, wall = self._clock.steady(), self._clock.wall()
        database = self._open(steady, wall)
        try:
            database.execute("BEGIN IMMEDIATE")
            row = _read(database)
            generation = self._may(row, steady)
            if generation:
                until = steady + self._lease_ns
                _write(database, _Row(self.holder, generation, until, self._boot, self._lease_ns))
            database.execute("COMMIT")
        finally:
            database.close()  # rolls back what is not committed
        if generation:
            self._took(generation, row.holder, steady, wall)
        else:
            self._lost(row.holder)

    def _may(self, row: _Row, steady: int) -> int:
        """Return the generation under which we hold it from now on, 0 when it is another's."""
        held = self._held
        ours = held is not None and (row.holder, row.generation) == (self.holder, held.generation)
        if ours and held is not None and steady < held.until_steady_ns:
            return row.generation
        return row.generation + 1 if self._free(row, steady) else 0

    def _free(self, row: _Row, steady: int) -> bool:
        """Tell whether its time is over. Another boot's clock says nothing: it must stand still so long."""
        if row.boot == self._boot:
            if row.until_steady_ns - steady > row.lease_ns:
                raise ValueError("its record ends later than a lease can")
            return steady >= row.until_steady_ns
        if self._seen is None or self._seen[0] != row:
            self._seen = (row, steady)
        return steady - self._seen[1] >= row.lease_ns

    def _open(self, steady: int, wall: int) -> sqlite3.Connection:
        """Open the file as it is now: one that was replaced is seen at the next renewal."""
        if not self._path.exists():
            self._create(steady, wall)
        database = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
        try:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version != _SCHEMA_VERSION:
                raise ValueError(f"schema version {version} is not {_SCHEMA_VERSION}")
            database.execute("PRAGMA synchronous = FULL")
        except BaseException:
            database.close()
            raise
        return database

    def _create(self, steady: int, wall: int) -> None:
        """Make the file whole under another name, then link it: of two that try, one wins."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_name(f"{self._path.name}.{uuid4().hex[:8]}")
        database = sqlite3.connect(new, isolation_level=None)
        try:
            database.executescript(f"{_SCHEMA}PRAGMA user_version = {_SCHEMA_VERSION};")
            nobody = _Row(
                "nobody", wall // 1_000_000_000, steady + self._lease_ns, self._boot, self._lease_ns
            )
            _write(database, nobody)
        finally:
            database.close()
        try:
            with suppress(FileExistsError):
                os.link(new, self._path)
        finally:
            new.unlink()

    def _give_back(self, held: Held) -> None:
        steady, wall = self._clock.steady(), self._clock.wall()
        database = self._open(steady, wall)
        try:
            database.execute(
                "UPDATE lease SET until_steady_ns = ? WHERE holder = ? AND generation = ?",
                (steady, self.holder, held.generation),
            )
        finally:
            database.close()


def _read(database: sqlite3.Connection) -> _Row:
    rows = database.execute(
        "SELECT holder, generation, until_steady_ns, boot, lease_ns FROM lease"
    ).fetchall()
    if len(rows) != 1:
        raise ValueError(f"expected one record, got {len(rows)}")
    row = _Row(*rows[0])
    numbers = (row.generation, row.until_steady_ns, row.lease_ns)
    if not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError("its record is malformed")
    return row


def _write(database: sqlite3.Connection, row: _Row) -> None:
    database.execute(
        "INSERT OR REPLACE INTO lease VALUES (1, ?, ?, ?, ?, ?)",
        (row.holder, row.generation, row.until_steady_ns, row.boot, row.lease_ns),
    )


def _boot_id() -> str:
    """Return this boot's id: the unit names it (%b), for it hides all of /proc but processes."""
    told = os.environ.get("GPUVIGIL_BOOT_ID") or Path("/proc/sys/kernel/random/boot_id").read_text()
    return told.strip().replace("-", "")
