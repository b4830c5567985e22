"""The forest as arrays: equal to scikit-learn's own scores, stored and read back, refused when changed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import IsolationForest

from gpuvigil_detectors import models
from gpuvigil_detectors.forest import Forest

HEALTHY = np.random.default_rng(0).normal(size=(600, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def forest():
    grown = Forest(seed=3)
    grown.fit(HEALTHY)
    return grown


def test_scores_equal_those_of_scikit_learn(forest):
    reference = IsolationForest(n_estimators=100, max_samples=256, random_state=3, n_jobs=1).fit(HEALTHY)
    rows = np.vstack([HEALTHY, HEALTHY * 4, HEALTHY.round(1)])
    assert np.abs(forest.score(rows) + reference.score_samples(rows)).max() < 1e-6


def test_a_row_apart_scores_higher(forest):
    odd = HEALTHY[:50] + 6
    assert forest.score(odd).min() > np.quantile(forest.score(HEALTHY), 0.98)


def test_missing_features_are_no_opinion(forest):
    rows = HEALTHY[:4].copy()
    rows[1, 3], rows[2, 5] = np.nan, np.inf
    assert np.isnan(forest.score(rows)).tolist() == [False, True, True, False]


def test_before_it_is_fitted_it_has_no_opinion():
    assert np.isnan(Forest().score(HEALTHY)).all() and not Forest().fitted


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="at least 64 whole rows, got 10"):
        Forest().fit(np.vstack([HEALTHY[:10], np.full((300, 12), np.nan, dtype=np.float32)]))


@given(seed=st.integers(0, 5), cut=st.integers(1, 599))
@settings(max_examples=10, deadline=None)
def test_deterministic_under_a_seed_and_rows_do_not_know_each_other(seed, cut):
    first, second = Forest(trees=10, seed=seed), Forest(trees=10, seed=seed)
    first.fit(HEALTHY)
    second.fit(HEALTHY)
    whole = first.score(HEALTHY)
    assert (whole == np.concatenate([second.score(HEALTHY[:cut]), second.score(HEALTHY[cut:])])).all()


def test_a_dump_comes_back_to_the_bit(forest):
    other = Forest()
    other.load(forest.dump())
    assert (other.score(HEALTHY) == forest.score(HEALTHY)).all()
    assert other.dump() == forest.dump()


def test_what_is_no_forest_is_refused(forest):
    data = bytearray(forest.dump())
    data[len(data) // 2] ^= 1
    arrays, meta = models.unpack("forest", forest.dump())
    wild = dict(arrays, left=arrays["left"] + 10_000)
    ring = dict(arrays, left=np.zeros_like(arrays["left"]))
    for bad, reason in ((bytes(data), "hash"), (b"x", "hash"), (models.pack("bank", {}, {}), "kind"),
                        (models.pack("forest", wild, meta), "numbers within"),
                        (models.pack("forest", ring, meta), "ring"),
                        (models.pack("forest", {"left": arrays["left"]}, meta), "five arrays")):  # fmt: skip
        with pytest.raises(models.ModelError, match=reason):
            Forest().load(bad)


def test_objects_are_never_stored():
    with pytest.raises(models.ModelError, match="objects"):
        models.pack("x", {"a": np.array([object()])}, {})
