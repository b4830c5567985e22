"""The part of the spool that is in memory: rows not yet in the file, watermarks to apply, gaps to tell.

Bounded: over RING_BYTES the oldest metrics go first, then the oldest events; each is counted and becomes
part of a gap. One lock; every method returns at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from gpuvigil_agent.ledger import EVENTS, METRICS, Ledger
from gpuvigil_agent.spool_store import Gap, Row, merged

RING_BYTES: Final = 8 << 20
Refused = tuple[str, int, int, str]


class Work(NamedTuple):
    """What one transaction writes. Every part may be written again without harm."""

    rows: list[Row]
    acks: dict[tuple[str, int], int]
    refused: list[Refused]
    dictionaries: list[tuple[str, int, bytes]]
    gaps: list[Gap]
    boot_id: str
    following: dict[int, int]
    samples: int


class Memory:
    """Shared by the caller and the spool's thread, which sleeps on `wake`."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.wake = threading.Condition()
        self.boot_id = ""
        self.following = {METRICS: 1, EVENTS: 1}
        # a sequence may be taken and its row still in the making: the file must not count it as written
        self.whole = {METRICS: 1, EVENTS: 1}
        self.samples = 0
        self.jobs: deque[Callable[[], None]] = deque()
        self.fresh = False  # rows came since the thread last looked
        self.stopping = False
        self._rows: dict[int, deque[Row]] = {METRICS: deque(), EVENTS: deque()}
        self._bytes = 0
        self._writing: list[Row] = []
        self._acks: dict[tuple[str, int], int] = {}
        self._refused: list[Refused] = []
        self._dictionaries: list[tuple[str, int, bytes]] = []
        self._gaps: dict[tuple[str, int, int], Gap] = {}
        self._unsaved_gaps: list[Gap] = []

    def allocate(self, number: int) -> tuple[str, int]:
        """Take the next sequence of a class."""
        with self.wake:
            self.following[number] += 1
            return self.boot_id, self.following[number] - 1

    def restart(self, boot_id: str, following: dict[int, int], samples: int) -> None:
        """Go on under this generation."""
        with self.wake:
            self.boot_id, self.following, self.samples = boot_id, following, samples
            self.whole = dict(following)

    def put(self, row: Row) -> None:
        """Add one message and wake the thread."""
        self.ledger.produced(row.number)
        with self.wake:
            self._rows[row.number].append(row)
            self._bytes += len(row.payload)
            self.samples += row.samples
            if row.boot_id == self.boot_id:
                self.whole[row.number] = row.sequence + 1
            self._shrink()
            self.fresh = True
            self.wake.notify()

    def put_dictionary(self, boot_id: str, version: int, payload: bytes) -> None:
        """Add a dictionary; the next transaction writes it."""
        with self.wake:
            self._dictionaries.append((boot_id, version, payload))

    def ack(self, boot_id: str, number: int, durable: int) -> None:
        """Take a watermark. It wakes nobody: it is written with the next rows."""
        with self.wake:
            if durable <= self._acks.get((boot_id, number), 0):
                return
            self._acks[boot_id, number] = durable
            gone = [r for r in self._rows[number] if r.boot_id == boot_id and r.sequence <= durable]
            if gone:
                self._rows[number] = deque(r for r in self._rows[number] if r not in gone)
                self._bytes -= sum(len(r.payload) for r in gone)
                self.ledger.durable(number, len(gone), "in_flight")
            for key, gap in list(self._gaps.items()):
                if key[:2] == (boot_id, number) and gap.last <= durable:
                    del self._gaps[key]

    def refuse(self, boot_id: str, number: int, sequence: int, reason: str) -> None:
        """Ask for the burial of one message."""
        with self.wake:
            self._refused.append((boot_id, number, sequence, reason))

    def submit(self, job: Callable[[], None]) -> None:
        """Run something on the spool's thread."""
        with self.wake:
            self.jobs.append(job)
            self.wake.notify()

    def stop(self) -> None:
        """Tell the thread to write what waits and end."""
        with self.wake:
            self.stopping = True
            self.wake.notify()

    def _shrink(self) -> None:
        dropped: list[Row] = []
        while self._bytes > RING_BYTES and (self._rows[METRICS] or self._rows[EVENTS]):
            row = (self._rows[METRICS] or self._rows[EVENTS]).popleft()
            self._bytes -= len(row.payload)
            self.ledger.dropped(row.number, 1, "memory_full", row.samples, "in_flight")
            dropped.append(row)
        self._add_gaps(merged(((r.boot_id, r.number, r.sequence, r.samples) for r in dropped), "memory_full"))

    def add_gaps(self, gaps: list[Gap], *, saved: bool = False) -> None:
        """Remember gaps; `saved` when the file has them already."""
        with self.wake:
            if saved:
                self._gaps |= {(gap.boot_id, gap.number, gap.first): gap for gap in gaps}
            else:
                self._add_gaps(gaps)

    def _add_gaps(self, gaps: list[Gap]) -> None:
        for gap in gaps:
            head = (gap.boot_id, gap.number, gap.reason, gap.first)
            before = [g for g in self._gaps.values() if (g.boot_id, g.number, g.reason, g.last + 1) == head]
            whole = gap
            if before:
                whole = before[0]._replace(last=gap.last, samples=before[0].samples + gap.samples)
            self._gaps[whole.boot_id, whole.number, whole.first] = whole
            self._unsaved_gaps.append(whole)

    def gaps(self, boot_id: str) -> list[Gap]:
        """Return the gaps of a boot that the collector has not yet made durable."""
        with self.wake:
            return [gap for gap in self._gaps.values() if gap.boot_id == boot_id]

    def waiting(self, boot_id: str, number: int) -> set[int]:
        """Return where the rows and gaps of a class begin that are here."""
        with self.wake:
            rows = (*self._writing, *self._rows[number])
            found = {row.sequence for row in rows if (row.boot_id, row.number) == (boot_id, number)}
            return found | {gap.first for key, gap in self._gaps.items() if key[:2] == (boot_id, number)}

    def boots(self) -> list[str]:
        """Return the boots that have rows or gaps here."""
        with self.wake:
            return [row.boot_id for rows in self._rows.values() for row in rows] + [
                gap.boot_id for gap in self._gaps.values()
            ]

    def rows_after(self, boot_id: str, number: int, after: int, limit: int) -> list[Row]:
        """Return rows that may not be in the file yet, in order."""
        with self.wake:
            found = [r for r in (*self._writing, *self._rows[number])
                     if (r.boot_id, r.number) == (boot_id, number) and r.sequence > after]  # fmt: skip
        return sorted(found, key=lambda row: row.sequence)[:limit]

    @property
    def has_work(self) -> bool:
        """True when a transaction would write something that must not wait."""
        return bool(self._rows[METRICS] or self._rows[EVENTS] or self._refused or self._unsaved_gaps)

    def take(self) -> Work:
        """Hand everything to one transaction; `done` or `put_back` must follow."""
        with self.wake:
            self._writing = [*self._rows[METRICS], *self._rows[EVENTS]]
            work = Work(
                rows=self._writing, acks=dict(self._acks), refused=self._refused, gaps=self._unsaved_gaps,
                dictionaries=self._dictionaries, boot_id=self.boot_id, following=dict(self.whole),
                samples=self.samples,
            )  # fmt: skip
            self._rows = {METRICS: deque(), EVENTS: deque()}
            self._bytes = 0
            self._refused, self._dictionaries, self._unsaved_gaps = [], [], []
            return work

    def done(self) -> None:
        """The transaction is on disk."""
        with self.wake:
            self._writing = []

    def put_back(self, work: Work) -> None:
        """The transaction failed: keep its parts for the next one, within the ring's bound."""
        with self.wake:
            self._writing = []
            for row in reversed(work.rows):
                self._rows[row.number].appendleft(row)
                self._bytes += len(row.payload)
            self._refused = work.refused + self._refused
            self._dictionaries = work.dictionaries + self._dictionaries
            self._unsaved_gaps = work.gaps + self._unsaved_gaps
            self._shrink()
