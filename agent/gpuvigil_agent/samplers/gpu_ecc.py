"""ECC errors of every GPU, corrected and uncorrectable, since driver load and over the board's life.

Source: NVML nvmlDeviceGetTotalEccErrors. Absent where ECC is off.
Cost: four driver calls per GPU every 10 s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from gpuvigil_agent.samplers.base import Sample
from gpuvigil_agent.samplers.gpu_reading import supported
from gpuvigil_protos import entity
from gpuvigil_protos.catalog import (
    GPU_ECC_CORRECTED_AGGREGATE_TOTAL,
    GPU_ECC_CORRECTED_VOLATILE_TOTAL,
    GPU_ECC_UNCORRECTED_AGGREGATE_TOTAL,
    GPU_ECC_UNCORRECTED_VOLATILE_TOTAL,
)

if TYPE_CHECKING:
    from gpuvigil_agent.nvml import Device

_COUNTERS = (  # metric, uncorrected, aggregate
    (GPU_ECC_CORRECTED_VOLATILE_TOTAL, False, False),
    (GPU_ECC_UNCORRECTED_VOLATILE_TOTAL, True, False),
    (GPU_ECC_CORRECTED_AGGREGATE_TOTAL, False, True),
    (GPU_ECC_UNCORRECTED_AGGREGATE_TOTAL, True, True),
)


class Ecc:
    """Yield four running totals."""

    name = "gpu_ecc"
    period_s = 10.0
    metrics = (
        GPU_ECC_CORRECTED_AGGREGATE_TOTAL,
        GPU_ECC_CORRECTED_VOLATILE_TOTAL,
        GPU_ECC_UNCORRECTED_AGGREGATE_TOTAL,
        GPU_ECC_UNCORRECTED_VOLATILE_TOTAL,
    )

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices

    def sample(self) -> Iterator[Sample]:
        """Read all devices once. Raises GpuLost when a board has fallen off the bus."""
        for device in self._devices:
            for metric, uncorrected, aggregate in _COUNTERS:
                read = partial(device.ecc_errors, uncorrected=uncorrected, aggregate=aggregate)
                yield from supported(entity.gpu(device.uuid), [(metric, read, 1.0)])
