"""Reads the silences of all replicas in a thread of its own, and answers from what was read last."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from gpuvigil_collector.alerting.alert import labels_of
from gpuvigil_collector.alerting.client import Alertmanager, AlertmanagerError, SilenceRow
from gpuvigil_collector.alerting.settings import AlertingConfig
from gpuvigil_collector.alerting.silences import Cover, Silences, read_rows
from gpuvigil_collector.export.view import View
from gpuvigil_protos import log

SILENCES_MAX: Final = 10_000
_STALE: Final = 4  # readings that may be missed before what was read is not relied on


class SilenceReader:
    """Silences are the same on every replica of a cluster: all are asked, and each answer counts."""

    def __init__(
        self, alertmanagers: list[Alertmanager], config: AlertingConfig, view: Callable[[], View]
    ) -> None:
        self._alertmanagers, self._config, self._view = alertmanagers, config, view
        self._stale_ns = int(_STALE * config.silences_interval * 1e9)
        self._cover, self._read_ns, self._why = Cover([], config.labels), 0, "not read yet"
        self._rows: dict[str, SilenceRow] = {}
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="silences", daemon=True)
        self._log = log.get("alerting")

    def start(self) -> None:
        """Begin reading, at once."""
        self._thread.start()

    def stop(self) -> None:
        """Ask for the end."""
        self._stopping.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread; one that still waits for an answer ends with the process."""
        self._thread.join(timeout_s)

    @property
    def count(self) -> int:
        """Silences that hold or will hold, as of the last reading."""
        return self._cover.count

    @property
    def read_ns(self) -> int:
        """When a replica was last read; 0 for never."""
        return self._read_ns

    def read(self, now_ns: int) -> Silences:
        """Return what is silenced now, without waiting for anybody. Any thread."""
        view = self._view()
        with self._guard:
            cover, read_ns = self._cover, self._read_ns
            nodes = {node: why for node in view.nodes if (why := cover.node(node, now_ns))}
            incidents = {
                one.id: why
                for one in view.open.values()
                if (why := cover.alert(labels_of(one, self._config.labels), now_ns))
            }
        fault = (
            "" if read_ns and now_ns - read_ns <= self._stale_ns else f"silences are not known: {self._why}"
        )
        return Silences(nodes=nodes, incidents=incidents, read_ns=read_ns, fault=fault)

    def _run(self) -> None:
        while True:
            self._look()
            if self._stopping.wait(self._config.silences_interval):
                break
        for one in self._alertmanagers:
            one.close()

    def _look(self) -> None:
        """Ask every replica; what one that is down held is on the others, or is kept until one answers."""
        rows: dict[str, SilenceRow] = {}
        answered, faults = False, []
        for one in self._alertmanagers:
            try:
                rows |= {row.id: row for row in one.silences()}
                answered = True
            except AlertmanagerError as error:
                faults.append(str(error))
        if len(rows) > SILENCES_MAX:
            answered, faults = False, [f"expected at most {SILENCES_MAX} silences, got {len(rows)}"]
        why = "; ".join(faults)[:500]
        if why and not self._why:
            self._log.warning("silences_unread", error=why)
        self._why = why
        if answered:
            self._take(rows, time.time_ns())

    def _take(self, rows: dict[str, SilenceRow], now_ns: int) -> None:
        """Put what was read in force. What it covers is reckoned here: a large fleet must not cost a tick."""
        cover = self._cover
        if rows != self._rows:
            cover, self._rows = Cover(read_rows(rows.values(), now_ns), self._config.labels), rows
            for node in self._view().nodes:
                cover.node(node, now_ns)
        with self._guard:
            self._cover, self._read_ns = cover, now_ns
