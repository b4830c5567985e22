"""The conservation law: produced = durable + spooled + dropped + in_flight, for each class.

Counted in sequences. Every change moves sequences from one place to another under one lock, so that the
sum holds at every instant; the oracle that judges it stands outside this process.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Final, Literal

METRICS: Final = 1
EVENTS: Final = 2
CLASSES: Final = {METRICS: "metrics", EVENTS: "events"}
Place = Literal["spooled", "in_flight"]


@dataclass(slots=True)
class Account:
    """One class. in_flight: made, not yet in the spool's file. durable: the collector has it on disk."""

    produced: int = 0
    durable: int = 0
    spooled: int = 0
    in_flight: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    dropped_samples: int = 0


class Ledger:
    """All accounts of this process; what an earlier run left in the spool counts as produced."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._accounts = {number: Account() for number in CLASSES}

    def inherited(self, number: int, spooled: int) -> None:
        """Rows that an earlier run left in the spool."""
        with self._lock:
            self._accounts[number].produced += spooled
            self._accounts[number].spooled += spooled

    def lost_before(self, number: int, count: int, samples: int) -> None:
        """Sequences that an earlier run made and lost."""
        with self._lock:
            self._accounts[number].produced += count
            self._drop(self._accounts[number], count, "crash", samples)

    def produced(self, number: int) -> None:
        """One more sequence, not yet in the spool."""
        with self._lock:
            self._accounts[number].produced += 1
            self._accounts[number].in_flight += 1

    def committed(self, number: int, count: int) -> None:
        """In-flight sequences are in the spool's file now."""
        with self._lock:
            self._accounts[number].in_flight -= count
            self._accounts[number].spooled += count

    def durable(self, number: int, count: int, place: Place = "spooled") -> None:
        """The collector has them on disk, so they left the spool."""
        with self._lock:
            account = self._accounts[number]
            setattr(account, place, getattr(account, place) - count)
            account.durable += count

    def dropped(self, number: int, count: int, reason: str, samples: int, place: Place = "spooled") -> None:
        """Sequences are gone for a reason."""
        with self._lock:
            account = self._accounts[number]
            setattr(account, place, getattr(account, place) - count)
            self._drop(account, count, reason, samples)

    @staticmethod
    def _drop(account: Account, count: int, reason: str, samples: int) -> None:
        account.dropped[reason] = account.dropped.get(reason, 0) + count
        account.dropped_samples += samples

    def snapshot(self) -> dict[str, Account]:
        """Return a consistent copy by class name."""
        with self._lock:
            return {
                CLASSES[number]: Account(
                    a.produced, a.durable, a.spooled, a.in_flight, dict(a.dropped), a.dropped_samples
                )
                for number, a in self._accounts.items()
            }
