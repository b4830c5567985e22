"""The write-ahead log of this node: every message waits here until the collector has it on disk.

The caller never waits for the disk: rows go to memory and the spool's thread (spool_writer.py) writes them
in groups, at most one sync each `sync_interval`. So a `kill -9` loses at most that interval, and the next
start says so (spool_open.py). While the disk is full or failing the memory ring takes over and the state
says so. Nothing above the `durable` watermark is deleted, unless the size cap drops it: oldest metrics
first, events last, counted and reported as gaps.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Final, TypeVar

from gpuvigil_agent import spool_open
from gpuvigil_agent.ledger import EVENTS, METRICS, Ledger
from gpuvigil_agent.spool_memory import Memory
from gpuvigil_agent.spool_open import SpoolError
from gpuvigil_agent.spool_store import Row, Store
from gpuvigil_agent.spool_writer import Writer

READ_TIMEOUT_S: Final = 5.0
SLOW_S: Final = 10.0  # a healthy disk syncs in milliseconds
_T = TypeVar("_T")


class Spool:
    """Call `open` first and `close` last; both block. What is written goes through `memory`."""

    def __init__(self, directory: Path, size_max: int, sync_interval_s: float, kernel_boot_id: str) -> None:
        self.directory, self.kernel_boot_id = directory, kernel_boot_id
        self.ledger = Ledger()
        self.memory = Memory(self.ledger)
        path = directory / spool_open.FILE
        self.writer = Writer(self.memory, self.ledger, path, size_max, sync_interval_s, kernel_boot_id)

    def open(self) -> None:
        """Lock the folder, open or quarantine the file, start the thread. Raises SpoolError."""
        spool_open.make_directory(self.directory)
        self._lock_fd = self._open_file("lock")
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock_fd)
            raise SpoolError(f"spool directory {self.directory}: another agent uses it") from None
        self.writer.used_fd = self._open_file(spool_open.USED_FILE)
        self.memory.restart(spool_open.new_boot_id(self.kernel_boot_id), {METRICS: 1, EVENTS: 1}, 0)
        try:
            self.writer.open_store()
        except sqlite3.Error as error:
            self.writer.fault(error)
        self.writer.thread.start()

    def _open_file(self, name: str) -> int:
        try:
            return os.open(self.directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpoolError(f"spool file {self.directory / name}: {error.strerror}") from None

    def close(self, timeout_s: float = 3.0) -> bool:
        """Write what waits and close cleanly. False when the disk did not answer in time."""
        self.memory.stop()
        self.writer.thread.join(timeout_s)
        if self.writer.thread.is_alive():
            return False
        os.close(self._lock_fd)
        os.close(self.writer.used_fd)
        return True

    @property
    def alive(self) -> bool:
        """False when the thread has died of a bug: the agent then ends and is restarted."""
        return self.writer.thread.is_alive()

    @property
    def state(self) -> str:
        """Return ok, degraded(disk_full), degraded(io_error), or degraded(slow_disk) while a sync hangs."""
        hangs = self.writer.state == "ok" and self.writer.under_way_s() > SLOW_S
        return "degraded(slow_disk)" if hangs else self.writer.state

    def waiting_boots(self) -> list[str]:
        """Return the boots that have rows or gaps, oldest first."""
        return list(dict.fromkeys([*(boot for boot, _ in list(self.writer.extent)), *self.memory.boots()]))

    def last(self, boot_id: str, number: int) -> int:
        """Return the highest sequence of a boot that the file or a gap here knows of; 0 for none."""
        known = [gap.last for gap in self.memory.gaps(boot_id) if gap.number == number]
        return max(*known, self.writer.extent.get((boot_id, number), (0, 0))[1], 0)

    def begins(self, boot_id: str, number: int) -> int:
        """Return the lowest sequence of a class that waits here; all below were durable once.

        1 where nothing is known of the class.
        """
        found = self.memory.waiting(boot_id, number)  # before the extent: rows move from here to there
        first, last = self.writer.extent.get((boot_id, number), (1, 0))
        if last >= first:
            found.add(first)
        if boot_id == self.memory.boot_id:
            found.add(self.memory.following[number])
        return min(found, default=1)

    async def read(self, boot_id: str, number: int, after: int, limit: int) -> list[Row]:
        """Return up to `limit` rows above `after`, from the file, else from memory. Raises TimeoutError."""
        none: list[Row] = []
        # before the file: a row that moves there in between would be found in neither
        waiting = self.memory.rows_after(boot_id, number, after, limit)
        rows = await self._ask(lambda store: self.writer.sound(store, boot_id, number, after, limit), none)
        return rows or waiting

    async def dictionary(self, boot_id: str, version: int) -> bytes | None:
        """Return a dictionary, None when it is lost. Raises TimeoutError when the disk does not answer."""
        return await self._ask(lambda store: store.dictionary(boot_id, version), None)

    async def _ask(self, question: Callable[[Store], _T], otherwise: _T) -> _T:
        """Ask on the spool's thread."""
        future: Future[_T] = Future()

        def job() -> None:
            answer = otherwise
            try:
                if self.writer.store is not None:
                    with spool_open.doubting():
                        answer = question(self.writer.store)
            except sqlite3.Error as error:
                self.writer.fault(error)
            if future.set_running_or_notify_cancel():
                future.set_result(answer)

        self.memory.submit(job)
        return await asyncio.wait_for(asyncio.wrap_future(future), READ_TIMEOUT_S)
