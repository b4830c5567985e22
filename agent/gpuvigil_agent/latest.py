"""The newest readings, for the metrics endpoint: raw totals, and nothing older than two periods."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from gpuvigil_agent.samplers.base import Sample

_SLACK_S: Final = 0.5


class Latest:
    """Written by the tick, read by the endpoint's thread: whole lists are replaced, never changed."""

    def __init__(self) -> None:
        self._readings: dict[str, tuple[float, float, list[Sample]]] = {}

    def put(self, source: str, period_s: float, at_s: float, samples: list[Sample] | None) -> None:
        """Replace what a source said. None takes it away at once: its reading failed."""
        if samples is None:
            self._readings.pop(source, None)
        else:
            self._readings[source] = (at_s, period_s, samples)

    def samples(self) -> Iterator[Sample]:
        """Yield every fresh sample once."""
        now_s = time.monotonic()
        for at_s, period_s, samples in list(self._readings.values()):
            if now_s - at_s <= 2 * period_s + _SLACK_S:
                yield from samples
