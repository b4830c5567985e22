"""The lease: of the collectors that share one store, one may act; its fence says for how long.

SqliteLease serves collectors on one host, which share one monotonic clock; a lease across hosts needs a
store of its own behind the same protocol. Whoever has no lease only observes, and says so.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from uuid import uuid4

from gpuvigil_collector.action import Fence
from gpuvigil_protos import log

_SCHEMA_VERSION: Final = 1
_RENEWALS: Final = 3  # in the time of one lease: one may be missed
_USABLE: Final = 0.5  # with less of the lease left than this share, nothing is begun
_BUSY_S: Final = 1.0
_SCHEMA: Final = """
CREATE TABLE lease(
  one INTEGER PRIMARY KEY CHECK(one = 1), holder TEXT NOT NULL, generation INTEGER NOT NULL,
  until_steady_ns INTEGER NOT NULL, boot TEXT NOT NULL, lease_ns INTEGER NOT NULL) STRICT;
"""


class Lease(Protocol):
    """The right to act. Any thread may ask."""

    fault: str

    def fence(self) -> Fence | None:
        """Return the right to act as of this moment, None when it is not ours or about to end."""
        ...

    def state(self) -> str:
        """Say who holds it, for people."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """wall: ns, UTC, may jump. steady: ns since boot, time asleep included, the same for all on this host."""

    wall: Callable[[], int] = time.time_ns
    steady: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    generation: int
    until_steady_ns: int
    until_wall_ns: int


@dataclass(frozen=True, slots=True)
class _Row:
    holder: str
    generation: int
    until_steady_ns: int
    boot: str
    lease_ns: int


class NoLease:
    """Where no lease store is shared: nobody may act."""

    fault = "no lease store is configured: this collector only observes"

    def fence(self) -> Fence | None:
        """Never ours."""
        return None

    def state(self) -> str:
        """Say why."""
        return self.fault


class SqliteLease:
    """A lease in a file that all collectors of one host share.

    A file that is broken, of another version or gone is never made anew over a holder that may still act: a
    new file is nobody's for one whole lease, and begins with a generation that no older file can have had.
    """

    def __init__(
        self,
        path: Path,
        *,
        lease_s: float = 30.0,
        holder: str = "",
        clock: Clock | None = None,
        boot: str = "",
    ) -> None:
        self.holder = f"{holder or socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self.fault = ""
        self._path, self._lease_ns, self._clock = path, int(lease_s * 1e9), clock or Clock()
        self._boot = boot or _boot_id()
        self._held: _Held | None = None
        self._other = ""
        self._seen: tuple[_Row, int] | None = None  # another boot's row and when we first saw it so
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="lease", daemon=True)
        self._log = log.get("lease")

    def start(self) -> None:
        """Take it where it is free, and renew it, in a thread of its own."""
        self.renew()
        self._thread.start()

    def stop(self) -> None:
        """End renewing and give it back: the next holder need not wait."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(self._lease_ns / 1e9)
        with self._lock, suppress(sqlite3.Error, OSError):
            held, self._held = self._held, None
            if held is not None:
                self._give_back(held)

    def fence(self) -> Fence | None:
        """Return the right to act now, by both clocks; None with less than half of the lease left.

        A process that was stopped and goes on reads its clocks here, before any effect.
        """
        held, steady, wall = self._held, self._clock.steady(), self._clock.wall()
        if held is None or wall >= held.until_wall_ns:
            return None
        left = min(held.until_steady_ns - steady, self._lease_ns)
        if left <= self._lease_ns * _USABLE:
            return None
        return Fence(
            holder=self.holder,
            generation=held.generation,
            until_ns=wall + left,
            lease_s=self._lease_ns / 1e9,
        )

    def state(self) -> str:
        """Say who holds it, for people."""
        held = self._held
        if held is not None and self.fence() is not None:
            return f"ours, generation {held.generation}"
        return self.fault or (
            f"held by {self._other}" if self._other else "not ours yet: this collector waits"
        )

    def renew(self) -> None:
        """Take or renew it once. What fails is told in `fault`; a lease that is held runs out by itself."""
        with self._lock:
            steady, wall = self._clock.steady(), self._clock.wall()
            try:
                self._transact(steady, wall)
            except (sqlite3.Error, OSError, ValueError) as error:
                if not self.fault:
                    self._log.error("lease_failed", error=str(error))
                self.fault = f"lease {self._path.name} cannot be used ({error}): this collector only observes"
            else:
                self.fault = ""

    def _transact(self, steady: int, wall: int) -> None:
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
        self._became(row, generation, steady, wall)

    def _became(self, row: _Row, generation: int, steady: int, wall: int) -> None:
        if not generation:
            self._held, self._other = None, row.holder
            return
        if self._held is None or self._held.generation != generation:
            self._log.warning("lease_taken", generation=generation, before=row.holder)
        self._held = _Held(
            generation=generation,
            until_steady_ns=steady + self._lease_ns,
            until_wall_ns=wall + self._lease_ns,
        )
        self._other = ""

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

    def _give_back(self, held: _Held) -> None:
        steady, wall = self._clock.steady(), self._clock.wall()
        database = self._open(steady, wall)
        try:
            database.execute(
                "UPDATE lease SET until_steady_ns = ? WHERE holder = ? AND generation = ?",
                (steady, self.holder, held.generation),
            )
        finally:
            database.close()

    def _main(self) -> None:
        while not self._stopping.wait(self._lease_ns / 1e9 / _RENEWALS):
            self.renew()


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
