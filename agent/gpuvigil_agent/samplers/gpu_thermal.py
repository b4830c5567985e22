"""Core and memory temperature of every GPU.

Source: NVML nvmlDeviceGetTemperature [Celsius], field NVML_FI_DEV_MEMORY_TEMP [Celsius].
Cost: two driver calls per GPU per second; one where the board lacks the memory sensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpuvigil_agent.driver_values import FIELD_MEMORY_TEMPERATURE
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_agent.samplers.gpu_reading import supported
from gpuvigil_protos import entity
from gpuvigil_protos.catalog import (
    GPU_MEMORY_TEMPERATURE_CELSIUS,
    GPU_TEMPERATURE_CELSIUS,
)

if TYPE_CHECKING:
    from gpuvigil_agent.nvml import Device


class Thermal:
    """Yield one reading per sensor that the board has."""

    name = "gpu_thermal"
    period_s = 1.0
    metrics = (
        GPU_MEMORY_TEMPERATURE_CELSIUS,
        GPU_TEMPERATURE_CELSIUS,
    )

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices

    def sample(self) -> Iterator[Sample]:
        """Read all devices once. A sensor the board lacks is left out, never sent as 0.

        Raises GpuLost when a board has fallen off the bus.
        """
        for device in self._devices:
            name = entity.gpu(device.uuid)
            yield from supported(name, [(GPU_TEMPERATURE_CELSIUS, device.temperature_celsius, 1.0)])
            for celsius in device.fields([(FIELD_MEMORY_TEMPERATURE, 0)]).values():
                if celsius > 0:  # boards without the sensor say 0, which no powered board is
                    yield Sample(GPU_MEMORY_TEMPERATURE_CELSIUS, name, celsius)
