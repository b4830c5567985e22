"""Statistics from readings to incidents through the real pipeline: silent on a healthy fleet, not on a drift.

The fleet is noise of its own kind (autoregressive, each GPU with its own level) and knows no threshold.
"""

from __future__ import annotations

import numpy as np
import pytest
from unit.brain_help import Rig

from gpuvigil_collector.learned import Learned
from gpuvigil_detectors.features import GPU_METRICS
from gpuvigil_detectors.statistical import Statistical

LEVELS = {
    "gpu_utilization_ratio": (0.9, 0.02), "gpu_memory_utilization_ratio": (0.6, 0.02),
    "gpu_framebuffer_used_bytes": (6e10, 1e8), "gpu_temperature_celsius": (65.0, 0.8),
    "gpu_memory_temperature_celsius": (75.0, 0.8), "gpu_power_watts": (600.0, 12.0),
    "gpu_sm_clock_hertz": (1.7e9, 1e7), "gpu_driver_call_seconds": (0.004, 0.0004),
}  # fmt: skip
HEALTHY_S = 420
DRIFT_S = 180


class Weather:
    """Noise for every GPU and metric: x' = 0.7 x + e, around a level of the GPU's own."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig, self.rng = rig, np.random.default_rng(seed)
        self.names = [rig.fleet.gpu(node, index) for node in rig.fleet.nodes for index in range(8)]
        self.state = np.zeros((len(GPU_METRICS), len(self.names)))
        self.own = 1 + 0.02 * self.rng.standard_normal(self.state.shape)
        self.shift = np.zeros(self.state.shape)

    def second(self) -> None:
        self.state = 0.7 * self.state + 0.71 * self.rng.standard_normal(self.state.shape)
        for row, metric in enumerate(GPU_METRICS):
            level, spread = LEVELS[metric]
            values = level * self.own[row] + spread * (self.state[row] + self.shift[row])
            for name, value in zip(self.names, values, strict=True):
                self.rig.fleet.set(metric, name, float(value))
        self.rig.fleet.advance(1)
        self.rig.tick(0)


@pytest.fixture
def rig(tmp_path) -> Rig:
    made = Rig(tmp_path, nodes=8, gpus=8)
    made.pipeline.learned = Learned(Statistical(learn_s=120.0, seed=3), tmp_path / "learned.model", 1e9)
    return made


def test_a_healthy_fleet_is_silent_and_a_drifting_gpu_is_named(rig: Rig) -> None:
    weather = Weather(rig, 1)
    for _ in range(HEALTHY_S):
        weather.second()
    view = rig.pipeline.view
    assert view.learning["calibrated"], view.learning
    assert list(view.open.values()) + list(view.resolved.values()) == []
    odd = 19
    hot, clock = GPU_METRICS.index("gpu_temperature_celsius"), GPU_METRICS.index("gpu_sm_clock_hertz")
    for second in range(DRIFT_S):
        weather.shift[hot, odd] = min(15.0, second / 5)
        weather.shift[clock, odd] = -min(15.0, second / 5)
        weather.second()
        if rig.pipeline.view.open:
            break
    [incident] = rig.pipeline.view.open.values()
    assert incident.target == weather.names[odd]
    assert incident.statistical
    assert "sigmas from its normal" in incident.cause
