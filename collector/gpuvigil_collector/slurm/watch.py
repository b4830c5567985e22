"""Reads Slurm at an interval in a thread of its own: a slurmctld that hangs delays nobody else."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from gpuvigil_collector.slurm.client import SlurmClient, UnknownError
from gpuvigil_collector.slurm.view import SlurmView, read
from gpuvigil_protos import log

_log = log.get("slurm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """The newest reading that went well; why the last did not, "" when it did. failures: since the start."""

    view: SlurmView | None = None
    trouble: str = "not read yet"
    failures: int = 0

    def fresh(self, now_ns: int, stale_s: float) -> SlurmView | None:
        """Return the view when it is at most stale_s old and not from the future; None means unknown."""
        if self.view is None or not 0 <= now_ns - self.view.at_ns <= stale_s * 1e9:
            return None
        return self.view


class SlurmWatch:
    """`state` is replaced whole: readers need no lock."""

    def __init__(
        self, client: SlurmClient, interval_s: float, deadline_s: float, opt_in_all: bool = False
    ) -> None:
        self.state = Watched()
        self._client, self._opt_in_all = client, opt_in_all
        self._interval_s, self._deadline_s = interval_s, deadline_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="slurm-watch", daemon=True)

    def start(self) -> None:
        """Begin to read, at once and then at the interval."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; waits for a reading that is under way, at most its deadline."""
        self._stop.set()
        self._thread.join(self._deadline_s + 1)

    def read_once(self) -> None:
        """Read now. A failure leaves the last view, which then ages."""
        before = self.state
        try:
            view = read(self._client, time.time_ns(), self._deadline_s, self._opt_in_all)
        except UnknownError as error:
            self.state = Watched(view=before.view, trouble=str(error), failures=before.failures + 1)
            if not before.trouble or before.view is None:
                _log.warning("slurm_unreadable", why=str(error))
            return
        self.state = Watched(view=view, trouble="", failures=before.failures)
        if before.trouble:
            _log.info("slurm_readable", nodes=len(view.nodes), jobs=len(view.jobs))

    def _loop(self) -> None:
        while not self._stop.is_set():
            self.read_once()
            self._stop.wait(self._interval_s)
