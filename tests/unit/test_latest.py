"""The newest readings: gone after two periods, gone at once when a reading failed."""

from __future__ import annotations

import pytest

from gpuvigil_agent import latest
from gpuvigil_agent.latest import Latest
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_protos import catalog

LOAD = [Sample(catalog.NODE_LOAD1, "node", 1.0)]


@pytest.mark.parametrize(("period_s", "fresh_s", "stale_s"), [(1.0, 2.4, 2.6), (10.0, 20.4, 20.6)])
def test_a_reading_is_stale_after_two_periods(
    monkeypatch: pytest.MonkeyPatch, period_s: float, fresh_s: float, stale_s: float
) -> None:
    now = 100.0
    monkeypatch.setattr(latest.time, "monotonic", lambda: now)
    newest = Latest()
    newest.put("host_cpu", period_s, 100.0, LOAD)
    now = 100.0 + fresh_s
    assert list(newest.samples()) == LOAD
    now = 100.0 + stale_s
    assert list(newest.samples()) == []


def test_a_reading_that_failed_takes_the_one_before_it_away() -> None:
    newest = Latest()
    newest.put("host_cpu", 1.0, latest.time.monotonic(), LOAD)
    newest.put("host_cpu", 1.0, latest.time.monotonic(), None)
    assert list(newest.samples()) == []
