"""PCIe link of every GPU: generation, width, and packets sent again.

Source: NVML nvmlDeviceGetCurrPcieLinkGeneration, nvmlDeviceGetCurrPcieLinkWidth [lanes],
nvmlDeviceGetPcieReplayCounter. Never nvmlDeviceGetPcieThroughput: it blocks 20 ms a call.
Cost: three driver calls per GPU every 10 s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpuvigil_agent.samplers.base import Sample
from gpuvigil_agent.samplers.gpu_reading import supported
from gpuvigil_protos import entity
from gpuvigil_protos.catalog import (
    GPU_PCIE_LINK_GENERATION,
    GPU_PCIE_LINK_WIDTH,
    GPU_PCIE_REPLAYS_TOTAL,
)

if TYPE_CHECKING:
    from gpuvigil_agent.nvml import Device


class Pcie:
    """Yield the link as it runs now. An idle GPU may lower the generation by itself."""

    name = "gpu_pcie"
    period_s = 10.0
    metrics = (
        GPU_PCIE_LINK_GENERATION,
        GPU_PCIE_LINK_WIDTH,
        GPU_PCIE_REPLAYS_TOTAL,
    )

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices

    def sample(self) -> Iterator[Sample]:
        """Read all devices once. Raises GpuLost when a board has fallen off the bus."""
        for device in self._devices:
            readings = [
                (GPU_PCIE_LINK_GENERATION, device.pcie_generation, 1.0),
                (GPU_PCIE_LINK_WIDTH, device.pcie_width, 1.0),
                (GPU_PCIE_REPLAYS_TOTAL, device.pcie_replays, 1.0),
            ]
            yield from supported(entity.gpu(device.uuid), readings)
