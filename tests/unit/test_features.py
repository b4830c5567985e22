"""Features of an entity: warm-up, own distance, missing share, events, and no learning from the masked."""

from __future__ import annotations

import numpy as np
from unit.fake_snapshot import Fleet

from gpuvigil_detectors.features import GPU_METRICS, FeatureTable

WARM = 70


def warm_table(seed=0):
    fleet, table, rng = Fleet(keep=3), FeatureTable(GPU_METRICS), np.random.default_rng(seed)
    for _ in range(WARM):
        for gpu in range(3):
            for place, metric in enumerate(GPU_METRICS):
                fleet.set(metric, fleet.gpu("n1", gpu), 10.0 * (place + 1) + rng.normal())
        features = table.update(fleet.advance(), frozenset())
    return fleet, table, features


def test_no_opinion_until_warm():
    fleet, table = Fleet(), FeatureTable(GPU_METRICS)
    fleet.set(GPU_METRICS[0], fleet.gpu("n1"), 1.0)
    for tick in range(WARM):
        features = table.update(fleet.advance(), frozenset())
        assert np.isnan(features.values).all() == (tick < 60)


def test_an_odd_metric_shows_in_its_own_column():
    fleet, table, _ = warm_table()
    fleet.set("gpu_power_watts", fleet.gpu("n1", 1), 0.0)
    features = table.update(fleet.advance(), frozenset())
    row = features.entities.index(fleet.gpu("n1", 1))
    column = GPU_METRICS.index("gpu_power_watts")
    assert features.values[row, column] < -10
    assert features.names[column].startswith("gpu_power_watts")
    assert np.abs(np.delete(features.values[row, :8], column)).max() < 6


def test_a_missing_metric_is_a_share_and_never_a_value():
    fleet, table, _ = warm_table()
    fleet.stop(fleet.gpu("n1", 1), "gpu_power_watts")
    for _ in range(20):
        features = table.update(fleet.advance(), frozenset())
    row = features.entities.index(fleet.gpu("n1", 1))
    assert features.values[row, GPU_METRICS.index("gpu_power_watts")] == 0
    assert features.values[row, features.names.index("share of missing metrics")] == np.float32(1 / 8)


def test_a_gpu_that_says_nothing_is_no_opinion():
    fleet, table, _ = warm_table()
    fleet.stop(fleet.gpu("n1", 1))
    for _ in range(20):
        features = table.update(fleet.advance(), frozenset())
    assert np.isnan(features.values[features.entities.index(fleet.gpu("n1", 1))]).all()


def test_events_are_counted_and_fade():
    fleet, table, _ = warm_table()
    column = table.names.index("recent events")
    for _ in range(5):
        fleet.event("n1", "xid", "gpu:GPU-n1-2", code=31)
    features = table.update(fleet.advance(), frozenset())
    row = features.entities.index(fleet.gpu("n1", 2))
    assert features.values[row, column] == 5
    for _ in range(500):
        features = table.update(fleet.advance(), frozenset())
    assert features.values[row, column] < 0.1


def test_the_masked_are_judged_and_not_learned():
    fleet, table, _ = warm_table()
    masked = frozenset({fleet.gpu("n1", 1)})
    before = table.state["slow"].copy()
    for gpu in (1, 2):
        fleet.set("gpu_power_watts", fleet.gpu("n1", gpu), 500.0)
    for _ in range(30):
        features = table.update(fleet.advance(), masked)
    column = GPU_METRICS.index("gpu_power_watts")
    assert (table.state["slow"][1] == before[1]).all() and features.values[1, column] > 10
    assert table.state["slow"][2, column] > before[2, column]
