"""Forecast residuals and runways: warm-up, seasons, what is found, what a steady node never says."""

from __future__ import annotations

import numpy as np
import pytest
from unit.fake_snapshot import SECOND, START_NS, Fleet, run

from gpuvigil_detectors.base import Window
from gpuvigil_detectors.forecast import Forecast, Smoothing
from gpuvigil_detectors.models import ModelError
from gpuvigil_detectors.runway import RESOURCES, Runway

GIB = 1 << 30


def window(values, start_ns=START_NS, step_s=1):
    values = np.asarray(values, dtype=np.float32)
    times = (start_ns + np.arange(values.shape[1]) * step_s * SECOND).astype(np.int64)
    return Window(metrics=("m",), entities=tuple(f"n/gpu:{i}" for i in range(len(values))), time_ns=times,
                  values=values[None], learnable=np.ones(values.shape, dtype=bool))  # fmt: skip


def test_a_step_stands_out_and_the_ordinary_does_not():
    rng = np.random.default_rng(0)
    values = 600 + 5 * rng.normal(size=(64, 600))
    values[7, 500:] = 450
    scores = Forecast().score(window(values), 600)
    assert np.isnan(scores[:, :60]).all()
    assert scores[7, 500] > 15
    assert np.nanquantile(np.delete(scores, 7, axis=0), 0.999) < 6


def test_scoring_leaves_the_learned_state_alone():
    forecast = Forecast()
    forecast.learn(window(np.random.default_rng(1).normal(size=(3, 100))))
    before = forecast.dump()
    forecast.score(window(np.full((3, 50), 1e6), START_NS + 200 * SECOND), 50)
    assert forecast.dump() == before


def test_what_is_not_learnable_moves_nothing():
    forecast = Forecast()
    forecast.learn(window(np.random.default_rng(1).normal(size=(3, 100))))
    levels = forecast.state["level"].copy()
    odd = window(np.full((3, 50), 1e6), START_NS + 200 * SECOND)
    odd.learnable[:] = False
    forecast.learn(odd)
    assert (forecast.state["level"] == levels).all()


def shifts(days, load=450.0, seed=2, step_s=60):
    """A fleet whose load comes at 08:00 and goes at 18:00 [2, minutes]."""
    minute = np.arange(days * 1440)
    busy = (minute % 1440 >= 480) & (minute % 1440 < 1080)
    noise = 5 * np.random.default_rng(seed).normal(size=(2, len(minute)))
    return window(
        100 + load * np.stack([busy, busy]) + noise, start_ns=START_NS // DAY_NS * DAY_NS, step_s=step_s
    )


DAY_NS = 86400 * SECOND


def test_the_usual_hour_of_a_jump_is_no_news_and_its_absence_is_none():
    view = shifts(6)
    worst = {}
    for bins in (0, 48):
        forecast, jumps = Forecast(Smoothing(season_bins=bins)), []
        for start in range(0, view.values.shape[2], 60):
            end = start + 60
            part = Window(
                metrics=view.metrics, entities=view.entities, time_ns=view.time_ns[start:end],
                values=view.values[:, :, start:end], learnable=view.learnable[:, start:end],
            )  # fmt: skip
            scores = forecast.score(part, 60)
            forecast.learn(part)
            if start // 1440 >= 4 and start % 1440 in {480, 1080}:
                jumps.append(float(scores.max()))
        worst[bins] = max(jumps)
    assert worst[0] > 2 * worst[48], "three days in, the day is known"


def test_a_fault_at_an_hour_without_a_usual_jump_stands_out_in_season_too():
    forecast, view = Forecast(), shifts(5)
    forecast.learn(view)
    odd = shifts(6)
    odd.values[0, 0, 5 * 1440 + 600 :] = 100.0  # one GPU idles at 10:00
    day = Window(metrics=odd.metrics, entities=odd.entities, time_ns=odd.time_ns[5 * 1440 :],
                 values=odd.values[:, :, 5 * 1440 :], learnable=odd.learnable[:, 5 * 1440 :])  # fmt: skip
    scores = forecast.score(day, 1440)
    assert scores[0, 600] > 2 * scores[1, 600:660].max()


def test_readings_without_a_season_keep_the_day_unknown():
    forecast = Forecast()
    forecast.learn(shifts(1))
    assert not (forecast.state["visits"] >= 2).all()


def test_a_dump_comes_back_and_a_changed_one_is_refused():
    forecast = Forecast()
    forecast.learn(window(np.random.default_rng(1).normal(size=(3, 100))))
    other = Forecast()
    other.load(forecast.dump())
    view = window(np.random.default_rng(3).normal(size=(3, 20)), START_NS + 100 * SECOND)
    assert np.array_equal(forecast.score(view, 20), other.score(view, 20), equal_nan=True)
    data = bytearray(forecast.dump())
    data[-30] ^= 1
    for bad in (bytes(data), b"", data[:40]):
        with pytest.raises(ModelError, match="forecast"):
            Forecast().load(bytes(bad))
    with pytest.raises(ModelError, match="profile"):
        Forecast(Smoothing(season_bins=24)).load(forecast.dump())


def disk(period_s=10):
    fleet, runway = Fleet(), Runway(RESOURCES[0])
    return fleet, runway, f"n1/filesystem:/scratch-{period_s}"


def drive(fleet, runway, entity, free, total=10 * GIB, every_s=10, metrics=RESOURCES[0]):
    """Send `free` (GiB), one reading every `every_s`; return the first finding and its second."""
    fleet.set(metrics.total, entity, total)
    for second in range(len(free) * every_s):
        if second % every_s == 0:
            fleet.set(metrics.metric, entity, free[second // every_s] * GIB)
        else:
            fleet.stop(entity, metrics.metric)
        found = runway.tick(fleet.advance())
        if found:
            return found[0], second
    return None, None


def test_a_disk_that_fills_is_found_before_it_is_full():
    free = [9.0] * 6 + [9 - 1.8 * step for step in range(1, 6)]
    finding, second = drive(*disk(), free)
    assert finding is not None and second <= 60 + 40
    assert finding.fault_class == "disk_full" and finding.entity.endswith("/scratch-10") and finding.notify
    assert "used up in" in finding.sentence and "GiB" in finding.sentence


def test_a_slow_creep_is_found_by_the_longer_line():
    free = [9.0 - 0.005 * step + 0.002 * (step % 2) for step in range(1200)]
    finding, second = drive(*disk(), free)
    assert finding is not None and second > 600 and finding.evidence.observed > 300


@pytest.mark.parametrize("free", [
    [9.0 + 0.01 * np.sin(step) for step in range(200)],
    [9.0 - 0.0005 * step for step in range(200)],
    [9.0] * 20 + [7.5] * 100,
    [9.0 - 1.0 * (step % 4 == 0) for step in range(200)],
    [3.0 + 0.02 * step for step in range(200)],
], ids=["noise", "too slow to matter", "one big file", "come and go", "being emptied"])  # fmt: skip
def test_what_does_not_run_out_says_nothing(free):
    assert drive(*disk(), free)[0] is None


def test_a_memory_leak_is_found_and_a_job_start_is_not():
    leak = [100.0] * 60 + [100.0 - 100 * step / 240 for step in range(240)]
    finding, second = drive(Fleet(), Runway(RESOURCES[1]), "n1/node", leak, 128 * GIB, 1, RESOURCES[1])
    assert finding.fault_class == "memory_leak_host" and second <= 60 + 120
    start = [100.0] * 60 + [100.0 - 2 * step for step in range(30)] + [40.0] * 300
    assert drive(Fleet(), Runway(RESOURCES[1]), "n1/node", start, 128 * GIB, 1, RESOURCES[1])[0] is None


def test_a_runway_clears_once_it_is_long_again():
    fleet, runway, entity = disk()
    assert drive(fleet, runway, entity, [9 - 1.8 * step for step in range(5)])[0] is not None
    fleet.set(RESOURCES[0].metric, entity, 9 * GIB)
    assert run(runway, fleet, 120) == []
