"""Clocks of every GPU, and why they are below their maximum.

Source: NVML nvmlDeviceGetClockInfo [MHz], nvmlDeviceGetCurrentClocksEventReasons [bits].
Cost: three driver calls per GPU per second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpuvigil_agent.samplers.base import Sample
from gpuvigil_agent.samplers.gpu_reading import supported
from gpuvigil_protos import entity
from gpuvigil_protos.catalog import (
    GPU_CLOCKS_EVENT_REASONS,
    GPU_MEMORY_CLOCK_HERTZ,
    GPU_SM_CLOCK_HERTZ,
)

if TYPE_CHECKING:
    from gpuvigil_agent.nvml import Device


class Clocks:
    """Yield core and memory clock and the event-reason bits."""

    name = "gpu_clocks"
    period_s = 1.0
    metrics = (
        GPU_CLOCKS_EVENT_REASONS,
        GPU_MEMORY_CLOCK_HERTZ,
        GPU_SM_CLOCK_HERTZ,
    )

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices

    def sample(self) -> Iterator[Sample]:
        """Read all devices once. Raises GpuLost when a board has fallen off the bus."""
        for device in self._devices:
            readings = [
                (GPU_SM_CLOCK_HERTZ, device.sm_clock_megahertz, 1e6),
                (GPU_MEMORY_CLOCK_HERTZ, device.memory_clock_megahertz, 1e6),
                (GPU_CLOCKS_EVENT_REASONS, device.clocks_event_reasons, 1.0),
            ]
            yield from supported(entity.gpu(device.uuid), readings)
