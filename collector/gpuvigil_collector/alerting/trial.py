"""`gpuvigil test-alert`: one alert through the real path of the mode, and whether Alertmanager has it."""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from gpuvigil_collector.alerting.client import Alertmanager, AlertmanagerError
from gpuvigil_collector.alerting.names import TEST_ALERT

LEAST_S: Final = 10.0
MOST_S: Final = 600.0
_ASK_AGAIN_S: Final = 1.0


class Trial:
    """One test alert at a time; asking again while it holds prolongs it."""

    def __init__(self, alertmanagers: list[Alertmanager]) -> None:
        self._alertmanagers = alertmanagers
        self._guard = threading.Lock()
        self._asked_s, self._seen = 0.0, dict[str, str]()
        self.starts_ns = self.until_ns = 0

    def begin(self, seconds: float, now_ns: int) -> None:
        """Let the test alert hold from now on, for so long."""
        if not self.holds(now_ns):
            self.starts_ns = now_ns
        self.until_ns = now_ns + int(seconds * 1e9)

    def holds(self, now_ns: int) -> bool:
        """Tell whether it should be firing."""
        return self.starts_ns <= now_ns < self.until_ns

    def seen(self) -> dict[str, str]:
        """Ask each Alertmanager: `firing`, `absent`, or why it cannot be told. Blocks for their deadlines."""
        with self._guard:
            if time.monotonic() - self._asked_s > _ASK_AGAIN_S:
                self._seen = {one.address: _ask(one) for one in self._alertmanagers}
                self._asked_s = time.monotonic()
            return self._seen

    def row(self, now_ns: int) -> dict[str, Any]:
        """Return what the API shows of it."""
        return {
            "alertname": TEST_ALERT,
            "holds": self.holds(now_ns),
            "until_ns": self.until_ns or None,
            "alertmanagers": self.seen(),
        }


def _ask(one: Alertmanager) -> str:
    try:
        return "firing" if one.holds(TEST_ALERT) else "absent"
    except AlertmanagerError as error:
        return str(error)
