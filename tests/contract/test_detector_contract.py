"""One battery for every detector: inputs untouched, seeded, NaN in NaN out, order, replay, absurd numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.fake_snapshot import SECOND, START_NS, Fleet
from unit.rule_cases import FAULTS, HEALTHY_GPU, HEALTHY_HOST

from gpuvigil_detectors.base import Window
from gpuvigil_detectors.decide import Limits
from gpuvigil_detectors.features import GPU_METRICS, NODE_METRICS
from gpuvigil_detectors.forecast import Forecast, Smoothing
from gpuvigil_detectors.rules import Rules
from gpuvigil_detectors.statistical import Statistical
from gpuvigil_detectors.structural import Structural

SCORERS: dict[str, Callable[[], Forecast]] = {
    "forecast": lambda: Forecast(Smoothing(warmup=5)),
    "forecast with trend and season": lambda: Forecast(Smoothing(warmup=5, trend=0.2, season_bins=24)),
}
STAGES: dict[str, Callable[[], object]] = {
    "rules": Rules,
    "structural": Structural,
    "statistical": lambda: Statistical(learn_s=60.0, limits=Limits(k=1, n=2), seed=4),
}
ODD = [np.nan, np.inf, -np.inf, 3e38, -3e38, 0.0, 1e-38]
values = st.floats(-1e6, 1e6, width=32) | st.sampled_from(ODD)
scorers = pytest.mark.parametrize("make", SCORERS.values(), ids=SCORERS)
stages = pytest.mark.parametrize("make", STAGES.values(), ids=STAGES)


@st.composite
def windows(draw):
    series, columns = draw(st.integers(1, 4)), draw(st.integers(1, 24))
    flat = draw(st.lists(values, min_size=series * columns, max_size=series * columns))
    learnable = draw(st.lists(st.booleans(), min_size=series * columns, max_size=series * columns))
    return Window(
        metrics=("m",), entities=tuple(f"n/gpu:{i}" for i in range(series)),
        time_ns=(START_NS + np.arange(columns) * SECOND).astype(np.int64),
        values=np.array(flat, dtype=np.float32).reshape(1, series, columns),
        learnable=np.array(learnable).reshape(series, columns),
    )  # fmt: skip


def part(window, first, last):
    return replace(window, time_ns=window.time_ns[first:last], values=window.values[:, :, first:last],
                   learnable=window.learnable[:, first:last])  # fmt: skip


@scorers
@given(window=windows())
@settings(max_examples=40, deadline=None)
def test_scores_have_the_shape_and_opinions_only_where_there_are_samples(make, window):
    detector, columns = make(), len(window.time_ns)
    scores = detector.score(window, columns)
    assert scores.shape == (len(window.entities), columns) and scores.dtype == np.float32
    assert np.isnan(scores[~np.isfinite(window.values[0])]).all()
    assert not np.isinf(scores).any() and not (scores < 0).any()


@scorers
@given(window=windows(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_replay_equals_streaming_for_every_split(make, window, data):
    columns = len(window.time_ns)
    whole = make().score(window, columns)
    cuts = sorted(data.draw(st.sets(st.integers(1, columns), max_size=4)) | {columns})
    detector, parts, first = make(), [], 0
    for last in cuts:
        parts.append(detector.score(part(window, 0, last), last - first))
        detector.learn(part(window, 0, last))
        first = last
    assert np.array_equal(np.concatenate(parts, axis=1), whole, equal_nan=True)


@scorers
@given(window=windows(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_order_of_series_is_irrelevant_and_inputs_stay(make, window, data):
    order = list(data.draw(st.permutations(range(len(window.entities)))))
    shuffled = replace(window, entities=tuple(window.entities[i] for i in order),
                       values=window.values[:, order], learnable=window.learnable[order])  # fmt: skip
    before = window.values.copy(), window.learnable.copy(), window.time_ns.copy()
    one, other = make(), make()
    half = max(1, len(window.time_ns) // 2)
    one.learn(part(window, 0, half))
    other.learn(part(shuffled, 0, half))
    first, second = one.score(window, len(window.time_ns)), other.score(shuffled, len(window.time_ns))
    assert np.array_equal(first[order], second, equal_nan=True)
    after = window.values, window.learnable, window.time_ns
    assert all(
        np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in zip(before, after, strict=True)
    )


@scorers
@given(window=windows())
@settings(max_examples=30, deadline=None)
def test_a_dump_goes_on_where_it_stopped(make, window):
    one, other = make(), make()
    one.learn(window)
    other.load(one.dump())
    later = replace(window, time_ns=window.time_ns + len(window.time_ns) * SECOND)
    columns = len(window.time_ns)
    assert np.array_equal(one.score(later, columns), other.score(later, columns), equal_nan=True)


def drive(detector, seed, seconds=90, reverse=False, absurd=False, twice=False):
    """A small fleet with faults of every kind; every finding of every tick as plain data."""
    fleet, rng = Fleet(keep=8), np.random.default_rng(seed)
    names = ["n0", "n1", "n2"][:: -1 if reverse else 1]
    draw = {(name, metric): rng.normal(size=seconds) for name in ("n0", "n1", "n2")
            for metric in (*HEALTHY_GPU, *HEALTHY_HOST, *GPU_METRICS, *NODE_METRICS)}  # fmt: skip
    for name in names:
        fleet.node(name, gpus=1)
    out = []
    for second in range(seconds):
        for name in names:
            _send(fleet, name, second, draw, absurd)
        if second == 40:
            fleet.event("n1", "xid", "gpu:GPU-n1-0", code=79)
            fleet.event("n1", "gpu_lost", "gpu:GPU-n1-0")
            fleet.event("n0", "xid", "gpu:GPU-n0-0", code=94)
        snapshot = fleet.advance()
        if twice:
            detector.tick(replace(snapshot, events=()))
        out.append(sorted((asdict(finding) for finding in detector.tick(snapshot)), key=str))
    return out


def _send(fleet, name, second, draw, absurd):
    fault = FAULTS[second // 10 % len(FAULTS)]
    for metric in (*HEALTHY_GPU, *GPU_METRICS, *HEALTHY_HOST, *NODE_METRICS):
        local = f"gpu:GPU-{name}-0" if metric.startswith("gpu_") else HEALTHY_HOST.get(metric, ("node",))[0]
        base = HEALTHY_GPU.get(metric, HEALTHY_HOST.get(metric, ("", 0.5))[1])
        jitter = 0.0 if metric in HEALTHY_GPU else 0.001 * draw[name, metric][second]
        value = base * (1 + jitter)
        if name == "n2" and second > 30 and metric in fault[0] and fault[1].replace("n1", "n2") == local:
            value = fault[0][metric]
        fleet.set(metric, f"{name}/{local}", ODD[second % len(ODD)] if absurd else value)


@stages
def test_a_stage_is_deterministic_and_the_order_of_nodes_is_irrelevant(make):
    first = drive(make(), 1)
    assert any(first) or make is STAGES["statistical"]
    assert drive(make(), 1) == first
    assert drive(make(), 1, reverse=True) == first


@stages
def test_a_stage_leaves_its_snapshot_as_it_was(make):
    fleet, detector = Fleet(), make()
    fleet.node("n0", gpus=1)
    fleet.set("gpu_power_watts", fleet.gpu("n0"), 500.0)
    fleet.event("n0", "xid", "gpu:GPU-n0-0", code=31, fields={"count": "3"})
    snapshot = fleet.advance()
    before = (snapshot.events, dict(snapshot.nodes), str(snapshot.history))
    detector.tick(snapshot)
    assert (snapshot.events, snapshot.nodes, str(snapshot.history)) == before


@stages
def test_a_stage_survives_absurd_numbers_with_finite_evidence(make):
    with np.errstate(over="ignore"):
        ticks = drive(make(), 2, absurd=True)
    for finding in (finding for findings in ticks for finding in findings):
        observed = finding["evidence"]["observed"]
        assert observed is None or np.isfinite(observed)
        assert finding["score"] is None or np.isfinite(finding["score"])
        assert finding["start_ns"] <= finding["end_ns"]


@stages
def test_a_stage_called_twice_in_a_second_says_the_same(make):
    assert drive(make(), 3, twice=True) == drive(make(), 3)


@stages
def test_a_stage_judges_an_empty_fleet(make):
    assert make().tick(Fleet().advance()) == []
