"""Looking after the recordings beside the hot path: small segments merged, unused dictionaries deleted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

import pyarrow as pa

from gpuvigil_collector.ingest.recorder import Recorder
from gpuvigil_collector.ingest.segments import Segments
from gpuvigil_protos import log

_SWEEP_EVERY_S: Final = 3600.0
_log = log.get("recordings")


class Upkeep:
    """Runs until told to stop; the work is done in a thread, one piece at a time."""

    def __init__(self, segments: Segments, recorder: Recorder, merge_after_s: float) -> None:
        self._segments, self._recorder, self._merge_after_s = segments, recorder, merge_after_s
        self._swept = time.monotonic()
        self._failing = False
        self.counters = dict.fromkeys(
            ("merges_total", "merge_failures_total", "dictionaries_deleted_total"), 0.0
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Look for work ten times in each `merge_after`."""
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._merge_after_s / 10)
            try:
                await self._work(stop)
            except (OSError, pa.ArrowException) as error:
                self.counters["merge_failures_total"] += 1
                if not self._failing:
                    _log.error("upkeep_failed", error=str(error), kept="the small segments, as they are")
                self._failing = True
            else:
                self._failing = False

    async def _work(self, stop: asyncio.Event) -> None:
        while not stop.is_set() and await asyncio.to_thread(
            self._segments.merge, self._recorder.committed, self._merge_after_s
        ):
            self.counters["merges_total"] += 1
        if not stop.is_set() and time.monotonic() - self._swept > _SWEEP_EVERY_S:
            self._swept = time.monotonic()
            swept = await asyncio.to_thread(self._segments.dictionaries.sweep, time.time())
            self.counters["dictionaries_deleted_total"] += swept
