"""Alerting: what [alerting] asks for, started and stopped as one."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from gpuvigil_collector.alerting.alert import Alert, Key, labels_of, trial_of, wanted
from gpuvigil_collector.alerting.client import Alertmanager
from gpuvigil_collector.alerting.replica import Replica, Wanted
from gpuvigil_collector.alerting.settings import AlertingConfig
from gpuvigil_collector.alerting.silence_reader import SilenceReader
from gpuvigil_collector.alerting.silences import Silences
from gpuvigil_collector.alerting.trial import Trial
from gpuvigil_collector.export.view import View
from gpuvigil_protos.settings import ConfigError

_STOP_S: Final = 2.0


class Alerting:
    """In mode rules it posts nothing: Prometheus asks. grace_s: after a start, how long an incident that is
    missing may still be found again (incidents.restore_grace).
    """

    def __init__(
        self, config: AlertingConfig, state: Path, view: Callable[[], View], *, grace_s: float
    ) -> None:
        self.config, self._view, self._grace_ns = config, view, int(grace_s * 1e9)
        context = config.tls.context("alerting.tls")

        def clients() -> list[Alertmanager]:
            return [Alertmanager(url, config, context) for url in config.alertmanagers]

        self.trial = Trial(clients())
        self.silences = (
            SilenceReader(clients(), config, view) if config.silences and config.alertmanagers else None
        )
        self.replicas = [
            Replica(one, config.resend, self.wanted, _file(state, one.address))
            for one in _posts(config, clients)
        ]
        self.left_out = 0
        self._guard = threading.Lock()
        self._last: tuple[int, bool, dict[Key, Alert]] | None = None

    def start(self) -> None:
        """Start the threads: one a replica that is posted to, one for silences."""
        for replica in self.replicas:
            replica.start()
        if self.silences is not None:
            self.silences.start()

    def stop(self) -> None:
        """End the threads, in 2 s at most; what is open stays open at Alertmanager."""
        parts: list[Replica | SilenceReader] = [*self.replicas]
        if self.silences is not None:
            parts.append(self.silences)
        for part in parts:
            part.stop()
        deadline = time.monotonic() + _STOP_S
        for part in parts:
            part.join(max(0.0, deadline - time.monotonic()))

    def read(self, now_ns: int) -> Silences:
        """Return what is silenced now; nothing where no Alertmanager is configured. Never waits."""
        return self.silences.read(now_ns) if self.silences is not None else Silences()

    def silenced(self) -> dict[str, str] | None:
        """Return the nodes that Alertmanager silences, and why; None while that is not known."""
        found = self.read(time.time_ns())
        return None if found.fault else dict(found.nodes)

    def wanted(self) -> Wanted | None:
        """Say what should be firing; None before the first tick. Reckoned once a tick for all replicas."""
        view, now_ns = self._view(), time.time_ns()
        if view.ticks == 0:
            return None
        sure = now_ns - view.started_ns >= self._grace_ns
        return Wanted(alerts=self._alerts(view, now_ns), ended=lambda: self._ended(view, now_ns), sure=sure)

    def _alerts(self, view: View, now_ns: int) -> dict[Key, Alert]:
        testing = self.trial.holds(now_ns)
        with self._guard:
            if self._last is None or self._last[:2] != (view.ticks, testing):
                alerts, self.left_out = wanted(view.alerting(), self.config)
                if testing:
                    trial = trial_of(self.trial.starts_ns, self.config)
                    alerts[trial.labels] = trial
                self._last = (view.ticks, testing, alerts)
            return self._last[2]

    def _ended(self, view: View, now_ns: int) -> dict[Key, int]:
        """Return when alerts ended that are known to have: incidents resolved, and the test alert."""
        ended = {
            labels_of(one, self.config.labels): one.resolved_ns or one.seen_ns
            for one in view.resolved.values()
        }
        if not self.trial.holds(now_ns):
            ended[trial_of(0, self.config).labels] = self.trial.until_ns or now_ns
        return ended

    def status(self) -> dict[str, Any]:
        """Return what /api/v1/alerting shows. Asks the Alertmanagers, so it may take their deadline."""
        now_ns = time.time_ns()
        silenced = self.read(now_ns)
        return {
            "mode": self.config.mode,
            "test": self.trial.row(now_ns),
            "replicas": [
                {"address": s.address, "up": s.up, "sent": s.sent, "waiting": s.waiting, "fault": s.fault}
                for s in (replica.state for replica in self.replicas)
            ],
            "silenced": {
                "nodes": dict(silenced.nodes), "incidents": dict(silenced.incidents),
                "read_ns": silenced.read_ns or None, "fault": silenced.fault,
            },
        }  # fmt: skip


def _posts(config: AlertingConfig, clients: Callable[[], list[Alertmanager]]) -> list[Alertmanager]:
    return clients() if config.mode == "api" else []


def _file(state: Path, address: str) -> Path:
    """Return where a replica's outbox outlives the process. Raises ConfigError."""
    folder = state / "alerts"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"state_directory: {folder} cannot be made: {error.strerror}") from None
    return folder / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}.json"
