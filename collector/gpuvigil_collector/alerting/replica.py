"""One replica's thread: sends its outbox, tries again, and holds nobody else up."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import msgspec

from gpuvigil_collector.alerting.alert import Alert, Key, wire
from gpuvigil_collector.alerting.client import Alertmanager, AlertmanagerError, NotTakenError
from gpuvigil_collector.alerting.outbox import Outbox, Saved
from gpuvigil_protos import log

_LOOK_S: Final = 1.0
_BACKOFF_MAX_S: Final = 30.0
STAYS: Final = 4  # an open alert ends by itself after so many resend intervals without us, as Prometheus' do


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What should be firing now. ended: when those ended that are known to have; asked where one is gone."""

    alerts: Mapping[Key, Alert]
    ended: Callable[[], Mapping[Key, int]]
    sure: bool


class Source(Protocol):
    """Says what should be firing; None before the first tick."""

    def __call__(self) -> Wanted | None:
        """Any thread may ask."""
        ...


@dataclass(slots=True, kw_only=True)
class ReplicaState:
    """What the metrics endpoint shows of one replica."""

    address: str
    up: bool = True
    sent: int = 0
    failures: int = 0
    refused: int = 0
    dropped: int = 0
    waiting: int = 0
    last_success_ns: int = 0
    fault: str = ""


class Replica:
    """Tells one Alertmanager. `state` may be read by any thread."""

    def __init__(self, alertmanager: Alertmanager, resend_s: float, source: Source, file: Path) -> None:
        self.state = ReplicaState(address=alertmanager.address)
        self._alertmanager, self._source, self._file = alertmanager, source, file
        self._outbox = Outbox(resend_ns=int(resend_s * 1e9))
        self._stays_s = STAYS * resend_s
        self._probe_every_ns, self._probe_ns = int(resend_s * 1e9), 0
        self._log = log.get("alerting")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"alerts {self.state.address}", daemon=True)

    def start(self) -> None:
        """Read what an earlier process left, and begin."""
        self._restore()
        self._thread.start()

    def stop(self) -> None:
        """Ask for the end. Nothing is resolved: what is open stays so until its endsAt, or our next start."""
        self._stopping.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread; one that still waits for an answer ends with the process."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        failed = 0
        while not self._stopping.wait(self._pause_s(failed)):
            wanted = self._source()
            if wanted is None:
                continue
            now_ns = time.time_ns()
            self._outbox.want(wanted.alerts, now_ns, wanted.ended, sure=wanted.sure)
            failed = 0 if self._send(now_ns) else failed + 1
            self.state.waiting, self.state.dropped = self._outbox.waiting, self._outbox.dropped
        self._alertmanager.close()

    @staticmethod
    def _pause_s(failed: int) -> float:
        """Full jitter from the second failure on, so that many collectors do not come back together."""
        if failed < 2:
            return _LOOK_S
        return _LOOK_S + random.uniform(0, min(_BACKOFF_MAX_S, 2.0**failed))

    def _send(self, now_ns: int) -> bool:
        """Send batch by batch until nothing is due; False when the replica did not take one."""
        while batch := self._outbox.batch(now_ns):
            self._save_if_changed()
            try:
                self._post(batch)
            except AlertmanagerError as error:
                self._failed(str(error))
                return False
            if not self.state.up:
                self._back()
            self._outbox.taken(batch, now_ns)
            self.state.last_success_ns = now_ns
            self._probe_ns = now_ns
        self._save_if_changed()
        return self._probe(now_ns)

    def _probe(self, now_ns: int) -> bool:
        """Nothing to tell for a while: post an empty list, so that a way that is cut shows itself."""
        if self.state.up and now_ns - self._probe_ns < self._probe_every_ns:
            return True
        self._probe_ns = now_ns
        try:
            self._alertmanager.post([])
        except AlertmanagerError as error:
            self._failed(str(error))
            return False
        self.state.last_success_ns = now_ns
        if not self.state.up:
            self._back()
        return True

    def _post(self, batch: list[Alert]) -> None:
        """Post; one alert that is refused must not keep the others, so the batch is halved until it is alone.

        Raises AlertmanagerError.
        """
        now_ns = time.time_ns()
        try:
            self._alertmanager.post([wire(alert, now_ns, self._stays_s) for alert in batch])
        except NotTakenError as error:
            if len(batch) == 1:
                self.state.refused += 1
                self._log.error("alert_refused", error=str(error)[:300], labels=str(batch[0].labels)[:500])
                return
            half = len(batch) // 2
            self._post(batch[:half])
            self._post(batch[half:])
        else:
            self.state.sent += len(batch)

    def _failed(self, why: str) -> None:
        self.state.failures += 1
        if self.state.up:
            self._log.warning("alertmanager_unreachable", error=why)
        self.state.up, self.state.fault = False, why

    def _back(self) -> None:
        """It may have been restarted, and keeps alerts in memory alone: it is told all of them again."""
        self._log.info("alertmanager_reachable", address=self.state.address)
        self.state.up, self.state.fault = True, ""
        self._outbox.all_due()

    def _save_if_changed(self) -> None:
        if not self._outbox.changed:
            return
        temporary = self._file.with_suffix(".new")
        try:
            with temporary.open("wb") as out:
                out.write(msgspec.json.encode(self._outbox.save()))
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(self._file)
        except OSError as error:  # alerts go out all the same; after a crash they end by endsAt
            self._log.warning("alert_state_unwritten", file=str(self._file), error=str(error))

    def _restore(self) -> None:
        try:
            saved = msgspec.json.decode(self._file.read_bytes(), type=Saved)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            self._log.warning("alert_state_unreadable", file=str(self._file), error=str(error))
            return
        self._outbox.restore(saved)
