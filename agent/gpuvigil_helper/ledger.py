"""What the helper must never forget: nonces, the newest order, effects begun and ended, units let go.

SQLite with synchronous=FULL: what a method wrote is on disk when it returns, so it is there after kill -9, a
power cut and a reboot. An effect is written down before it begins.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast

from gpuvigil_protos.order import Order

NONCES_MAX: Final = 1_000_000
REBOOT_WITHIN_S: Final = 900.0
EffectState = Literal["intended", "done", "failed", "unknown"]
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS nonces(nonce TEXT PRIMARY KEY) WITHOUT ROWID; CREATE TABLE IF NOT EXISTS
newest(one INTEGER PRIMARY KEY CHECK (one = 1), generation INTEGER, number INTEGER); CREATE TABLE IF NOT
EXISTS effects(nonce TEXT PRIMARY KEY, action TEXT, incident TEXT, generation INTEGER, verb TEXT, target
TEXT, state TEXT, boot_id TEXT, at_ns INTEGER, up_ns INTEGER, detail TEXT); CREATE TABLE IF NOT EXISTS
let_go(unit TEXT PRIMARY KEY);
"""


class LedgerError(Exception):
    """The ledger cannot be read or written: without it nothing may happen."""


class SeenError(Exception):
    """An order that was seen before, or one older than the newest; the text says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One effect. at_ns: UTC; up_ns: since the boot of boot_id, unaffected by a clock that is set."""

    action: str
    verb: str
    target: str
    state: EffectState
    boot_id: str
    at_ns: int
    up_ns: int
    detail: str


class Ledger:
    """One file, one process; its threads take turns. Raises LedgerError from every method."""

    def __init__(self, file: Path, boot_id: str) -> None:
        self._boot_id = boot_id
        self._lock = threading.RLock()
        with _faults():
            self._db = sqlite3.connect(file, timeout=5, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)

    def take(self, order: Order) -> None:
        """Use an order up: its nonce is spent for ever. Raises SeenError, and then nothing has changed."""
        with self._transaction():
            [generation, number] = self._db.execute(
                "SELECT coalesce(max(generation), 0), coalesce(max(number), 0) FROM newest"
            ).fetchone()
            if self._db.execute("SELECT 1 FROM nonces WHERE nonce = ?", (order.nonce,)).fetchone():
                raise SeenError("nonce: this order was seen before")
            if order.generation < generation:
                raise SeenError(f"generation: expected {generation} or newer, got {order.generation}")
            if (order.generation, order.number) <= (generation, number):
                raise SeenError(f"number: expected more than {number}, got {order.number}: an older order")
            if self._db.execute("SELECT count(*) FROM nonces").fetchone()[0] >= NONCES_MAX:
                raise SeenError(f"nonce: {NONCES_MAX} orders were taken; a person must look at this node")
            self._db.execute("INSERT INTO nonces VALUES (?)", (order.nonce,))
            self._db.execute(
                "INSERT OR REPLACE INTO newest VALUES (1, ?, ?)", (order.generation, order.number)
            )

    def begin(self, order: Order) -> None:
        """Write an effect down before it happens."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO effects VALUES (?, ?, ?, ?, ?, ?, 'intended', ?, ?, ?, '')",
                (
                    order.nonce, order.action, order.incident, order.generation, order.verb, order.target,
                    self._boot_id, time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME),
                ),
            )  # fmt: skip

    def end(self, nonce: str, state: EffectState, detail: str) -> None:
        """Write down how an effect ended."""
        with self._transaction():
            self._db.execute(
                "UPDATE effects SET state = ?, detail = ? WHERE nonce = ?", (state, detail[:500], nonce)
            )

    def settle(self) -> list[Effect]:
        """After a start: say what became of open effects. A new boot id tells that a reboot happened."""
        with self._transaction():
            self._db.execute(
                "UPDATE effects SET state = 'done', detail = 'rebooted' "
                "WHERE state = 'intended' AND verb = 'reboot' AND boot_id != ?", (self._boot_id,)
            )  # fmt: skip
            self._db.execute(
                "UPDATE effects SET state = 'unknown', detail = 'the helper ended in the middle of it' "
                "WHERE state = 'intended' AND NOT (verb = 'reboot' AND boot_id = ?)", (self._boot_id,)
            )  # fmt: skip
        return self.effects("state IN ('intended', 'unknown')", ())

    def of_action(self, action: str) -> Effect | None:
        """Return the newest effect of an action. A reboot that did not come in time has failed."""
        late_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - int(REBOOT_WITHIN_S * 1e9)
        with self._transaction():
            self._db.execute(
                "UPDATE effects SET state = 'failed', detail = 'the machine did not go down' "
                "WHERE state = 'intended' AND verb = 'reboot' AND boot_id = ? AND up_ns < ?",
                (self._boot_id, late_ns),
            )
        found = self.effects("action = ?", (action,))
        return found[-1] if found else None

    def within(self, verb: str, target: str, seconds: float) -> list[Effect]:
        """Return effects begun within a time by either clock: none escapes by a clock that is set.

        One that failed counts too: a limit is on what is tried.
        """
        now_ns, up_ns = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        found = self.effects("verb = ? AND target = ?", (verb, target))
        span_ns = int(seconds * 1e9)
        return [
            effect for effect in found
            if effect.at_ns > now_ns - span_ns
            or (effect.boot_id == self._boot_id and effect.up_ns > up_ns - span_ns)
        ]  # fmt: skip

    def effects(self, where: str, values: tuple[object, ...]) -> list[Effect]:
        """Return effects, oldest first; `where` is our own text."""
        query = f"SELECT action, verb, target, state, boot_id, at_ns, up_ns, detail FROM effects WHERE {where} ORDER BY rowid"  # noqa: S608, E501
        with self._lock, _faults():
            rows = self._db.execute(query, values).fetchall()
        return [
            Effect(action=row[0], verb=row[1], target=row[2], state=cast(EffectState, row[3]), boot_id=row[4],
                   at_ns=row[5], up_ns=row[6], detail=row[7])
            for row in rows
        ]  # fmt: skip

    def let_go(self, unit: str) -> None:
        """Remember a unit that we stop and owe a start, before it is stopped."""
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO let_go VALUES (?)", (unit,))

    def restored(self, unit: str) -> None:
        """Forget a unit that runs again."""
        with self._transaction():
            self._db.execute("DELETE FROM let_go WHERE unit = ?", (unit,))

    def owed(self) -> list[str]:
        """Return the units that we stopped and have not started again, newest first."""
        with self._lock, _faults():
            return [row[0] for row in self._db.execute("SELECT unit FROM let_go ORDER BY rowid DESC")]

    def close(self) -> None:
        """Close the file."""
        with self._lock, _faults():
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, _faults():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise LedgerError(f"ledger: {error}") from None
