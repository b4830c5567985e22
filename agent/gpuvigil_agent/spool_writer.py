"""The spool's own thread: owns the file, writes groups of rows, and copes with disks that fail.

A full or failing disk degrades the state and is tried again every RETRY_S, with the rows kept in memory;
after an I/O error nothing of the failed transaction counts as written. A corrupt file is put aside: what it
held is told as gaps, and a new generation begins.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple

from gpuvigil_agent import spool_open
from gpuvigil_agent.ledger import CLASSES, EVENTS, METRICS, Ledger
from gpuvigil_agent.spool_memory import Memory, Work
from gpuvigil_agent.spool_store import Gap, Row, Store, merged
from gpuvigil_protos import log

RETRY_S: Final = 2.0
_log = log.get("spool")


class Written(NamedTuple):
    """What one transaction did: rows deleted as durable by class, gaps by the size cap, rows buried."""

    deleted: dict[int, int]
    trimmed: list[Gap]
    buried: list[tuple[int, str]]


class Writer:
    """`open_store` may be called once before `start`; from then on only the thread touches the file."""

    def __init__(self, memory: Memory, ledger: Ledger, path: Path, size_max: int, sync_interval_s: float,
                 kernel_boot_id: str) -> None:  # fmt: skip
        self.memory, self.ledger, self.path = memory, ledger, path
        self.size_max, self.sync_interval_s, self.kernel_boot_id = size_max, sync_interval_s, kernel_boot_id
        self.state = "ok"
        self.used_bytes = 0
        self.sync_s = 0.0
        self.counters = {
            "syncs": 0,
            "faults": 0,
            "corrupt_rows": 0,
            "quarantined_files": 0,
            "unclean_starts": 0,
        }
        self.used_fd = -1
        self.store: Store | None = None
        self.extent: dict[tuple[str, int], tuple[int, int]] = {}  # what the file may hold: first, last
        self._inherited = False
        self._commit_at_s = self._under_way = 0.0
        self.thread = threading.Thread(target=self._run, name="spool", daemon=True)

    def open_store(self) -> None:
        """Open the file. The first time, a clean one chooses the generation; later ours goes on."""
        try:
            self._open()
        except sqlite3.Error as error:
            if not spool_open.is_corrupt(error):
                raise
            self._replace(str(error))
            self._open()

    def _open(self) -> None:
        with spool_open.doubting():
            store = Store(self.path)
        try:
            with spool_open.doubting():
                self._inherit(store, self._go_on(store))
        except sqlite3.Error:
            store.close()
            raise
        self.store = store

    def _go_on(self, store: Store) -> spool_open.Opened:
        if self._inherited:
            return spool_open.Opened(self.memory.boot_id, self.memory.following, 0, [], False)
        line = os.pread(self.used_fd, 200, 0).decode("ascii", "replace")
        opened = spool_open.go_on(store, self.kernel_boot_id, line)
        if not self.thread.is_alive():
            self.memory.restart(opened.boot_id, opened.following, opened.samples)
        return opened

    def _inherit(self, store: Store, opened: spool_open.Opened) -> None:
        counts, gaps, used_bytes = list(store.counts()), store.gaps(), store.used_bytes()
        if not self._inherited:
            self._inherited = True
            self.counters["unclean_starts"] += opened.unclean
            for boot_id, number, count, low, top in counts:
                self.ledger.inherited(number, count)
                self.extent[boot_id, number] = (low, top)
            for gap in opened.lost:
                self.ledger.lost_before(gap.number, gap.last - gap.first + 1, gap.samples)
        self.memory.add_gaps(gaps, saved=True)
        self.used_bytes = used_bytes

    def sound(self, store: Store, boot_id: str, number: int, after: int, limit: int) -> list[Row]:
        """Read rows back; those whose CRC is wrong are deleted and become a gap. On the thread alone."""
        sound, corrupt = store.read(boot_id, number, after, limit)
        if corrupt:
            self.counters["corrupt_rows"] += len(corrupt)
            store.delete(corrupt)
            self._lose(merged(((r.boot_id, r.number, r.sequence, r.samples) for r in corrupt), "corrupt"))
        return sound

    def _lose(self, gaps: list[Gap]) -> None:
        for gap in gaps:
            self.ledger.dropped(gap.number, gap.last - gap.first + 1, gap.reason, gap.samples)
        self.memory.add_gaps(gaps)

    def _run(self) -> None:
        memory = self.memory
        while True:
            with memory.wake:
                memory.wake.wait_for(lambda: memory.jobs or memory.stopping or memory.fresh, self._idle_s())
                jobs, memory.fresh = list(memory.jobs), False
                memory.jobs.clear()
            for job in jobs:
                job()
            self._note_used()
            if memory.stopping:
                self._finish()
                return
            if memory.has_work and time.monotonic() >= self._commit_at_s:
                self._commit()

    def _idle_s(self) -> float | None:
        if not self.memory.has_work:
            return None
        return max(0.0, self._commit_at_s - time.monotonic())

    def _note_used(self) -> None:
        """Write how far the sequences are, before any wait: `kill -9` keeps what was written."""
        with self.memory.wake:
            text = spool_open.used_text(self.memory.boot_id, self.memory.whole, self.memory.samples)
        try:
            os.pwrite(self.used_fd, text, 0)
        except OSError:
            self.counters["faults"] += 1

    def under_way_s(self) -> float:
        """Return for how long the transaction of now has been under way; any thread may ask."""
        since = self._under_way
        return time.monotonic() - since if since else 0.0

    def _commit(self) -> bool:
        self._under_way = time.monotonic()
        try:
            return self._transact()
        finally:
            self._under_way = 0.0

    def _transact(self) -> bool:
        started = time.monotonic()
        self._commit_at_s = started + self.sync_interval_s
        work = self.memory.take()
        try:
            if self.store is None:
                self.open_store()
            assert self.store is not None
            written = self._write(self.store, work)
        except sqlite3.Error as error:
            self.memory.put_back(work)
            self.fault(error)
            return False
        self._account(work, written)
        self.memory.done()
        self.sync_s = time.monotonic() - started
        self.counters["syncs"] += 1
        self._recovered()
        return True

    def _write(self, store: Store, work: Work) -> Written:
        """Write and sync everything in one transaction; a refused row is buried before watermarks delete."""
        store.begin()
        for boot_id, version, payload in work.dictionaries:
            store.put_dictionary(boot_id, version, payload)
        for row in work.rows:
            store.put(row)
        for gap in work.gaps:
            store.put_gap(gap)
        buried = [(number, reason) for boot_id, number, sequence, reason in work.refused
                  if store.bury(boot_id, number, sequence, reason)]  # fmt: skip
        deleted = dict.fromkeys(CLASSES, 0)
        for (boot_id, number), durable in work.acks.items():
            deleted[number] += store.delete_durable(boot_id, number, durable)
        with spool_open.doubting():
            trimmed = self._trim(store)
        spool_open.remember_progress(store, work.boot_id, work.following, work.samples)
        store.commit()
        return Written(deleted, trimmed, buried)

    def _trim(self, store: Store) -> list[Gap]:
        trimmed: list[Gap] = []
        while (used := store.used_bytes()) > self.size_max and (gaps := store.trim()):
            for gap in gaps:
                store.put_gap(gap)
            trimmed += gaps
        self.used_bytes = used
        return trimmed

    def _account(self, work: Work, written: Written) -> None:
        for number in CLASSES:
            self.ledger.committed(number, sum(row.number == number for row in work.rows))
            self.ledger.durable(number, written.deleted[number])
        for row in work.rows:
            first, _ = self.extent.get((row.boot_id, row.number), (row.sequence, 0))
            self.extent[row.boot_id, row.number] = (first, row.sequence)
        for key, durable in work.acks.items():
            first, last = self.extent.get(key, (1, 0))
            self.extent[key] = (max(first, durable + 1), last)
            if durable >= last:
                del self.extent[key]
        for number, reason in written.buried:
            self.ledger.dropped(number, 1, f"refused_{reason}", 0)
        self._lose(written.trimmed)

    def fault(self, error: sqlite3.Error) -> None:
        """Wait and try again, or start a new file when this one is bad."""
        self.counters["faults"] += 1
        self._commit_at_s = time.monotonic() + RETRY_S
        word = f"degraded({spool_open.fault_word(error)})"
        if word != self.state:
            _log.error("spool_degraded", state=word, error=str(error))
        self.state = word
        if spool_open.is_corrupt(error):
            self._replace(str(error))
        elif self.store is not None:
            try:
                self.store.rollback()
            except sqlite3.Error:
                self._close_store()

    def _close_store(self) -> None:
        if self.store is not None:
            self.store.close()
            self.store = None

    def _replace(self, reason: str) -> None:
        """Put the file aside: its rows are lost and told as gaps; a new generation begins."""
        self._close_store()
        aside = spool_open.quarantine(self.path)
        self.counters["quarantined_files"] += 1
        _log.error("spool_quarantined", file=str(aside), reason=reason)
        for number, account in zip(CLASSES, self.ledger.snapshot().values(), strict=True):
            self.ledger.dropped(number, account.spooled, "corrupt", 0)
        lost = ((key, first, last) for key, (first, last) in self.extent.items() if last >= first)
        self.memory.add_gaps([Gap(*key, first, last, "corrupt", 0) for key, first, last in lost])
        self.extent.clear()
        self.memory.restart(spool_open.new_boot_id(self.kernel_boot_id), {METRICS: 1, EVENTS: 1}, 0)

    def _recovered(self) -> None:
        if self.state != "ok":
            _log.info("spool_recovered", was=self.state)
        self.state = "ok"

    def _finish(self) -> None:
        """Last transaction, then the mark of a clean close."""
        written = self._commit()
        if written and self.store is not None:
            self.store.begin()
            self.store.remember("clean", "1")
            self.store.forget_boots(self.memory.boot_id)
            self.store.commit()
            self.store.close()
