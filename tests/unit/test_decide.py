"""The decision: honest p-values, bounded false discoveries, persistence, hysteresis, budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.fake_snapshot import SECOND, START_NS

from gpuvigil_detectors.decide import Decide, Limits, Pool, discoveries

RNG = np.random.default_rng(0)
MANY = tuple(f"n/gpu:{i}" for i in range(200))


def pool_of(scores):
    pool = Pool()
    pool.add(scores)
    return pool


def test_p_values_of_healthy_scores_are_honest():
    pool = pool_of(RNG.exponential(size=8000))
    p = pool.p_values(RNG.exponential(size=20000))
    for bound in (0.1, 0.01, 0.002):
        assert (p <= bound).mean() == pytest.approx(bound, rel=0.5)


def test_p_values_fall_beyond_the_history_and_stay_above_zero():
    pool = pool_of(RNG.exponential(size=2000))
    p = pool.p_values(np.array([5.0, 12.0, 20.0, 40.0, 1e9]))
    assert (np.diff(p) <= 0).all() and p[2] < 1e-6 and (p > 0).all()


def test_no_p_value_before_the_pool_is_ready():
    assert np.isnan(pool_of(np.arange(499.0)).p_values(np.array([1e9]))).all()


@given(st.lists(st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1e308, 3.0]), max_size=30))
@settings(deadline=None)
def test_absurd_scores_give_no_opinion_and_are_not_kept(scores):
    pool = pool_of(RNG.exponential(size=1000))
    given_scores = np.array(scores, dtype=np.float64)
    p = pool.p_values(given_scores)
    assert (np.isfinite(p) == np.isfinite(given_scores)).all()
    pool.add(given_scores)
    assert np.isfinite(pool.values).all()


def test_a_full_pool_stays_bounded_and_follows_drift():
    pool = pool_of(RNG.normal(size=8192))
    for _ in range(60):
        pool.add(RNG.normal(loc=5, size=8192))
    assert len(pool.values) == 8192 and np.median(pool.values) > 4


@given(st.lists(st.floats(0.0, 1.0) | st.just(float("nan")), max_size=60), st.floats(0.001, 0.2))
@settings(deadline=None)
def test_discoveries_are_benjamini_and_hochbergs(p_values, rate):
    p = np.array(p_values)
    found = discoveries(p, rate)
    finite = np.sort(p[np.isfinite(p)])
    below = [value for place, value in enumerate(finite, 1) if value <= rate * place / len(finite)]
    bound = max(below, default=-1.0)
    assert (found == (np.nan_to_num(p, nan=2.0) <= bound)).all()


def test_clean_ticks_raise_next_to_nothing():
    decide, raised = Decide(Limits(alarms_per_hour=1e9)), 0
    for tick in range(400):
        raised += int(decide.update(MANY, RNG.random(len(MANY)), START_NS + tick * 10 * SECOND).sum())
    assert raised == 0


def test_an_alarm_needs_k_of_n_and_ends_when_ordinary():
    decide = Decide(Limits(k=3, n=5))
    p = np.full(len(MANY), 0.5)
    states = []
    for tick, odd in enumerate([1, 0, 1, 1, 1, 0, 0, 0, 0]):
        p[7] = 1e-9 if odd else 0.5
        states.append(bool(decide.update(MANY, p, START_NS + tick * 10 * SECOND)[7]))
    assert states == [False, False, False, True, True, True, True, False, False]


def test_no_opinion_neither_raises_nor_clears_but_not_for_ever():
    decide = Decide(Limits(k=2, n=3))
    p = np.full(len(MANY), 0.5)
    p[3] = 1e-9
    for tick in range(3):
        active = decide.update(MANY, p, START_NS + tick * SECOND)
    assert active[3]
    p[3] = np.nan
    assert decide.update(MANY, p, START_NS + 200 * SECOND)[3]
    assert not decide.update(MANY, p, START_NS + 400 * SECOND)[3]


def test_beyond_the_budget_alarms_are_recorded_and_muted():
    decide = Decide(Limits(k=1, n=1, alarms_per_hour=2.0))
    p = np.full(len(MANY), 0.5)
    p[:5] = 1e-12
    active = decide.update(MANY, p, START_NS + SECOND)
    assert active[:5].all() and decide.muted()[:5].sum() == 3 and decide.muted_total == 3


def test_suspects_are_not_learned_from_and_not_for_ever():
    decide = Decide(Limits(k=2, n=3, relearn_s=100.0))
    p = np.full(len(MANY), 0.5)
    p[3] = 1e-9
    decide.update(MANY, p, START_NS)
    assert decide.suspects(START_NS + SECOND) == {MANY[3]}
    assert decide.suspects(START_NS + 101 * SECOND) == frozenset()


@given(st.permutations(range(12)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_series_has_no_say(order):
    names = tuple(f"n/gpu:{i:02}" for i in range(12))
    limits = Limits(k=1, n=2, alarms_per_hour=2.0)
    straight, shuffled = Decide(limits), Decide(limits)
    rng = np.random.default_rng(5)
    for tick in range(6):
        p = np.where(rng.random(12) < 0.3, 1e-9, 0.6)
        now_ns = START_NS + tick * SECOND
        first = straight.update(names, p, now_ns)
        second = shuffled.update(tuple(names[i] for i in order), p[list(order)], now_ns)
        assert (first[list(order)] == second).all()
        assert (straight.muted()[list(order)] == shuffled.muted()).all()
