"""Counters become rates at the edge: resets and wraps never look like huge or negative traffic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gpuvigil_agent.samplers.base import Sample

_WRAPS = (float(1 << 32), float(1 << 64))


def increase(before: float, now: float) -> float | None:
    """Return how much a counter grew. None after a reset: what it counted before that is unknown.

    A 32- or 64-bit wrap is believed only in the top and bottom sixteenth of the range.
    """
    if now >= before:
        return now - before
    for size in _WRAPS:
        if size * 15 / 16 <= before <= size and now <= size / 16:
            return now + size - before
    return None


class Rates:
    """Remember each counter's last reading; entities that stop coming are forgotten."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[float, float]] = {}
        self.resets = 0

    def for_wire(self, samples: Iterable[Sample], at_s: float) -> Iterator[Sample]:
        """Yield samples as they travel: per-second rates where the catalogue says rate, else the level.

        `at_s` is monotonic. The first reading of a counter, and the first after a reset, yields NaN: the
        series exists and has no value yet.
        """
        for sample in samples:
            if sample.metric.wire == "level":
                yield sample
            else:
                yield sample._replace(value=self._rate(sample, at_s))

    def _rate(self, sample: Sample, at_s: float) -> float:
        key = (sample.metric.name, sample.entity)
        before = self._last.get(key)
        self._last[key] = (sample.value, at_s)
        if before is None or at_s <= before[1]:
            return float("nan")
        grown = increase(before[0], sample.value)
        if grown is None:
            self.resets += 1
            return float("nan")
        return grown / (at_s - before[1])

    def forget_before(self, at_s: float) -> None:
        """Drop counters not read since `at_s`: unplugged devices must not pile up."""
        stale = [key for key, (_, seen_s) in self._last.items() if seen_s < at_s]
        for key in stale:
            del self._last[key]
