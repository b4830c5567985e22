"""What the driver says that every GPU needs: nothing, a reset, a reboot.

Source: NVML field NVML_FI_DEV_GET_GPU_RECOVERY_ACTION (driver 570 and newer).
Cost: one driver call per GPU every 10 s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpuvigil_agent.driver_values import FIELD_RECOVERY_ACTION
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_protos import entity
from gpuvigil_protos.catalog import (
    GPU_RECOVERY_ACTION,
)

if TYPE_CHECKING:
    from gpuvigil_agent.nvml import Device


class Recovery:
    """Yield the recovery action as NVML numbers it; absent on older drivers."""

    name = "gpu_recovery"
    period_s = 10.0
    metrics = (GPU_RECOVERY_ACTION,)

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices

    def sample(self) -> Iterator[Sample]:
        """Read all devices once. Raises GpuLost when a board has fallen off the bus."""
        for device in self._devices:
            for action in device.fields([(FIELD_RECOVERY_ACTION, 0)]).values():
                yield Sample(GPU_RECOVERY_ACTION, entity.gpu(device.uuid), action)
