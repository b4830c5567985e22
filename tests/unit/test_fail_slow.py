"""Fail-slow on simulated traces: clean runs are silent, ten percent is told in a few steps, work is none."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from gpuvigil_detectors.training.fail_slow import FailSlow

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from bench_fail_slow import ours
from step_traces import Noise, healthy, slowed, variable_length

STEPS = 300


def test_clean_runs_are_silent_and_ten_percent_is_found_in_time():
    rng = np.random.default_rng(3)
    assert (ours(healthy(rng, 300, STEPS, Noise())) < 0).all()
    onset = rng.integers(100, 250, 100)
    first = ours(slowed(rng, 100, STEPS, Noise(), 0.10, onset))
    assert (first >= onset).all()
    assert np.median(first - onset + 1) <= 6 and np.quantile(first - onset + 1, 0.95) <= 10


def test_longer_sequences_are_work_and_no_slowdown():
    rng = np.random.default_rng(4)
    seconds, tokens, squares = variable_length(rng, 60, STEPS, Noise())
    work = np.stack([tokens, squares], axis=2)
    assert (ours(seconds, work) < 0).all()
    seconds[:, 200:] *= 1.10
    assert (ours(seconds, work) >= 200).mean() > 0.95


def test_a_job_back_at_its_pace_is_slow_no_more_and_a_faster_one_is_learned_anew():
    rng = np.random.default_rng(5)
    seconds = healthy(rng, 20, 500, Noise(spike_chance=0))
    seconds[:, 150:200] *= 1.2
    seconds[:, 300:] *= 0.8
    judge, jobs, slow = FailSlow(), tuple(map(str, range(20))), []
    for step in range(500):
        slow.append(judge.advance(jobs, seconds[:, step]).confirmed)
    slow = np.array(slow)
    assert slow[160:199].all() and not slow[215:].any()
    usual = np.median(seconds[:, 400:], axis=1)
    told = [judge.advance(jobs, usual * rng.normal(1.15, 0.01, 20)).confirmed for _ in range(20)]
    assert np.array(told)[10:].all(), "the faster pace is the job's past now"


def test_jobs_come_and_go_without_taking_each_others_past():
    judge, rng = FailSlow(), np.random.default_rng(6)
    for _ in range(60):
        judge.advance(("a", "b"), np.array([1.0, 5.0]) * rng.normal(1, 0.01, 2))
    for step in range(30):
        said = judge.advance(("b", "c"), np.array([5.0, 1.0]) * rng.normal(1, 0.01, 2))
        assert not said.confirmed.any(), step


@pytest.mark.parametrize("seconds", [np.nan, 0.0, -1.0, np.inf, 1e300, 1e-300])
def test_numbers_that_are_no_step_times_leave_it_standing(seconds):
    judge = FailSlow()
    for step in range(80):
        judge.advance(("a",), np.array([seconds if step % 7 == 3 else 1.0]))
    assert not judge.advance(("a",), np.array([1.0])).confirmed.any()
