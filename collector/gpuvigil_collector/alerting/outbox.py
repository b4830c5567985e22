"""Outbox: what one Alertmanager replica was told, and what it must still be told. No clock, no I/O.

An alert that is gone is told as resolved until the replica has taken that, and then never again. Before the
first attempt to send one it is in `told`, so that an answer that was lost leaves nothing burning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from gpuvigil_collector.alerting.alert import Alert, Key

ENDING_MAX: Final = 2000
BATCH_MAX: Final = 200


class Saved(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What outlives the process: alerts that the replica may hold as open, and ends it has not taken yet."""

    version: int
    told: list[Alert]
    ending: list[Alert]


@dataclass(slots=True, kw_only=True)
class Outbox:
    """One replica's. dropped: ends that found no room, the oldest go (the replica ends those by endsAt)."""

    resend_ns: int
    told: dict[Key, Alert] = field(default_factory=dict)
    ending: dict[Key, Alert] = field(default_factory=dict)
    dropped: int = 0
    changed: bool = False
    _wanted: Mapping[Key, Alert] = field(default_factory=dict)
    _due_ns: dict[Key, int] = field(default_factory=dict)

    def want(
        self, wanted: Mapping[Key, Alert], now_ns: int, ended: Callable[[], Mapping[Key, int]], *, sure: bool
    ) -> None:
        """Take what is open now. ended: when those ended that are known to have.

        sure: False just after a start, when an alert that is missing may only not have been found again.
        """
        self._wanted = wanted
        for key in wanted.keys() & self.ending.keys():
            # it is open again before the replica heard that it had ended: it never ended
            del self.ending[key]
            self.changed = True
        gone = self.told.keys() - wanted.keys()
        known = ended() if gone else {}
        for key in gone:
            if sure or key in known:
                ends_ns = min(known.get(key, now_ns), now_ns)
                self.ending[key] = replace(self.told.pop(key), ends_ns=max(1, ends_ns))
                self._due_ns.pop(key, None)
                self.changed = True
        while len(self.ending) > ENDING_MAX:
            del self.ending[next(iter(self.ending))]
            self.dropped += 1

    def batch(self, now_ns: int) -> list[Alert]:
        """Return what to send now: ends first, then open alerts that are due; BATCH_MAX at most.

        Open ones are in `told` from here on: save, then send.
        """
        due = [
            alert
            for key, alert in self._wanted.items()
            if key not in self.told or self._due_ns.get(key, 0) <= now_ns
        ]
        found = [*self.ending.values(), *due][:BATCH_MAX]
        for alert in found:
            if not alert.ends_ns:
                self.changed |= alert.labels not in self.told
                self.told[alert.labels] = alert
        return found

    def taken(self, batch: list[Alert], now_ns: int) -> None:
        """Note that the replica has taken these."""
        for alert in batch:
            if not alert.ends_ns:
                self._due_ns[alert.labels] = now_ns + self.resend_ns
            elif self.ending.get(alert.labels) == alert:
                del self.ending[alert.labels]
                self.changed = True

    def all_due(self) -> None:
        """The replica was away and may have forgotten everything: tell it all again."""
        self._due_ns.clear()

    @property
    def waiting(self) -> int:
        """Alerts that the replica has not taken yet, open or ended."""
        return len(self.ending) + sum(key not in self._due_ns for key in self._wanted)

    def save(self) -> Saved:
        """Return what must outlive the process."""
        self.changed = False
        return Saved(version=1, told=list(self.told.values()), ending=list(self.ending.values()))

    def restore(self, saved: Saved) -> None:
        """Take back what an earlier process left."""
        self.told = {alert.labels: alert for alert in saved.told}
        self.ending = {alert.labels: alert for alert in saved.ending[-ENDING_MAX:]}
