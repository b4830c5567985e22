"""ETTR against Monte Carlo, the published examples, and the best interval against a search."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuvigil_collector.goodput.formulas import best_interval, ettr, failures_per_node_day, young_interval

MINUTE = 60.0


def monte_carlo(rate, interval, write, down, restart, segments=2_000_000, seed=2):
    """The model of the formula: after each failure, down time, then a restart that may itself fail."""
    rng = np.random.default_rng(seed)
    wall, todo = np.zeros(segments), np.arange(segments)
    restarting = np.zeros(segments, dtype=bool)
    while len(todo):
        need = np.where(restarting[todo], restart, 0.0) + interval + write
        fails_after = rng.exponential(1 / rate, len(todo))
        through = fails_after >= need
        wall[todo] += np.where(through, need, fails_after + down)
        restarting[todo] = True
        todo = todo[~through]
    return interval * segments / wall.sum()


@pytest.mark.parametrize(
    ("rate", "interval", "write", "down", "restart"),
    [
        (1 / (108.2 * MINUTE), 5 * MINUTE, 0.0, 0.0, 5 * MINUTE),
        (1 / (108.2 * MINUTE), 60 * MINUTE, 60.0, 120.0, 5 * MINUTE),
        (1 / (8 * 3600), 1800.0, 90.0, 30.0, 240.0),
        (1 / 1200, 300.0, 20.0, 15.0, 0.0),
        (1 / (30 * 86400), 7200.0, 300.0, 600.0, 600.0),
    ],
)
def test_ettr_agrees_with_monte_carlo_within_a_fifth_of_a_percent(rate, interval, write, down, restart):
    found = ettr(rate=rate, interval=interval, write=write, down=down, restart=restart)
    assert found == pytest.approx(monte_carlo(rate, interval, write, down, restart), rel=2e-3)


def test_the_published_examples():
    rate = 1 / (108.2 * MINUTE)
    given = {"rate": rate, "write": 0.0, "down": 0.0, "restart": 5 * MINUTE}
    assert ettr(interval=5 * MINUTE, **given) == pytest.approx(0.933, abs=0.001)
    assert ettr(interval=60 * MINUTE, **given) == pytest.approx(0.714, abs=0.001)
    rate = 1 / (108 * MINUTE)
    assert young_interval(rate=rate, write=MINUTE) / MINUTE == pytest.approx(14.7, abs=0.05)
    assert best_interval(rate=rate, write=MINUTE) / MINUTE == pytest.approx(14.0, abs=0.05)
    assert young_interval(rate=rate, write=5 * MINUTE) / MINUTE == pytest.approx(32.9, abs=0.05)
    assert best_interval(rate=rate, write=5 * MINUTE) / MINUTE == pytest.approx(29.6, abs=0.05)


@given(
    mtbf=st.floats(60, 1e7), write=st.floats(0.1, 600), down=st.floats(0, 3600), restart=st.floats(0, 3600)
)
def test_no_interval_beats_the_best(mtbf, write, down, restart):
    rate = 1 / mtbf
    best = best_interval(rate=rate, write=write)
    known = {"rate": rate, "write": write, "down": down, "restart": restart}
    top = ettr(interval=best, **known)
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        assert ettr(interval=best * factor, **known) <= top + 1e-12
    assert 0 <= top <= 1


def test_without_failures_only_the_writes_cost():
    assert ettr(rate=0, interval=90, write=10, down=5, restart=5) == 0.9
    with pytest.raises(ValueError, match="interval > 0"):
        ettr(rate=1, interval=0, write=1, down=0, restart=0)
    assert ettr(rate=1.0, interval=1e6, write=0, down=0, restart=0) == 0.0, "hopeless, and no overflow"


def test_the_rate_begins_with_what_is_known_and_follows_what_is_seen():
    assert failures_per_node_day(0, 0) == pytest.approx(6.5e-3)
    assert failures_per_node_day(0, 1e6) < 1e-5
    assert failures_per_node_day(50, 1000) == pytest.approx(51 / (1000 + 1 / 6.5e-3))
    assert not math.isnan(failures_per_node_day(1, 0))
