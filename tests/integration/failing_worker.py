"""An ingest worker that is killed at a named point, or loses one batch in a thousand: what tests start.

The product's worker has neither switch: `main` takes a hook and a recorder, and only this file passes them.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from gpuvigil_collector.ingest import frames, worker
from gpuvigil_collector.ingest.hooks import Hook, no_hook
from gpuvigil_collector.ingest.ledger import Key
from gpuvigil_collector.ingest.recorder import Recorder
from gpuvigil_collector.ingest.segment_rows import MetricRow

SCRIPT = Path(__file__).resolve()


def killing_hook(point: str, hits: int, marker: Path) -> Hook:
    """Kill this process at the `hits`-th arrival at `point`, once: the marker says that it has happened."""
    left = hits

    def hook(here: str) -> None:
        nonlocal left
        if here != point or marker.exists():
            return
        left -= 1
        if left <= 0:
            marker.write_text(point)
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


class LosingRecorder(Recorder):
    """The mutant: forgets one batch in a thousand, and says nothing."""

    _count = 0

    def add_batch(self, key: Key, rows: list[MetricRow], digest: str, dictionary: bytes) -> None:
        """Drop every thousandth batch's rows, as a bug would."""
        self._count += 1
        super().add_batch(key, [] if self._count % 1000 == 0 else rows, digest, dictionary)


class DyingReport(worker.Worker):
    """A bug in the task that tells the brain each second how the worker is."""

    marker: Path

    def _status(self) -> frames.Status:
        """Raise once; the marker says that it has happened."""
        if self.marker.exists():
            return super()._status()
        self.marker.write_text("died")
        raise OverflowError("can't serialize ints >= 2**64")


def main(argv: list[str]) -> int:
    """Read `kill POINT HITS MARKER`, `lose - 0 -` or `mute - 0 MARKER`, then a worker's arguments."""
    mode, point, hits, marker, *rest = argv
    if mode == "mute":
        DyingReport.marker = Path(marker)
        worker.Worker = DyingReport
        return worker.main(rest)
    if mode == "lose":
        return worker.main(rest, no_hook, LosingRecorder)
    return worker.main(rest, killing_hook(point, int(hits), Path(marker)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
