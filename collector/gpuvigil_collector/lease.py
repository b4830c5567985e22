"""The lease: of the collectors that share one store, one may act; its fence says for how long.

Where the lease is kept is each kind's own: a file on one host (`lease_file.py`), a cluster's Lease
(`kube/lease.py`). Whoever has no lease only observes, and says so.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol
from uuid import uuid4

from gpuvigil_collector.action import Fence
from gpuvigil_protos import log

RENEWALS: Final = 3  # in the time of one lease: one may be missed
_USABLE: Final = 0.5  # with less of the lease left than this share, nothing is begun


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
class Held:
    """The lease while it is ours, and when it ends by each clock."""

    generation: int
    until_steady_ns: int
    until_wall_ns: int


class RenewedLease(ABC):
    """A lease that a thread of its own takes where it is free, renews, and gives back at the end.

    `name` is told to people. What `_try` raises of `errors` is told in `fault`, and is tried again.
    """

    errors: ClassVar[tuple[type[Exception], ...]]

    def __init__(self, name: str, lease_ns: int, holder: str, clock: Clock | None) -> None:
        self.holder = f"{holder or socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self.fault = ""
        self._name, self._lease_ns, self._clock = name, lease_ns, clock or Clock()
        self._held: Held | None = None
        self._other = ""
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="lease", daemon=True)
        self._log = log.get("lease")

    @abstractmethod
    def _try(self) -> None:
        """Take or renew it once: ends in `_took`, in `_lost` or in one of `errors`."""

    @abstractmethod
    def _give_back(self, held: Held) -> None:
        """End what is ours in the store."""

    def start(self) -> None:
        """Take it where it is free, and renew it, in a thread of its own."""
        self.renew()
        self._thread.start()

    def stop(self) -> None:
        """End renewing and give it back: the next holder need not wait."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(self._lease_ns / 1e9)
        with self._lock, suppress(*self.errors):
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
            try:
                self._try()
            except self.errors as error:
                if not self.fault:
                    self._log.error("lease_failed", error=str(error))
                self.fault = f"lease {self._name} cannot be used ({error}): this collector only observes"
            else:
                self.fault = ""

    def _took(self, generation: int, before: str, steady: int, wall: int) -> None:
        """It is ours from these times on. before: who had it."""
        if self._held is None or self._held.generation != generation:
            self._log.warning("lease_taken", generation=generation, before=before)
        self._held = Held(
            generation=generation,
            until_steady_ns=steady + self._lease_ns,
            until_wall_ns=wall + self._lease_ns,
        )
        self._other = ""

    def _lost(self, other: str) -> None:
        """It is another's."""
        self._held, self._other = None, other

    def _main(self) -> None:
        while not self._stopping.wait(self._lease_ns / 1e9 / RENEWALS):
            self.renew()
