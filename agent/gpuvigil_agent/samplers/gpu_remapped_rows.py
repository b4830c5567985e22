"""Remapped rows of every GPU, and whether a remap waits or has failed.

Source: NVML nvmlDeviceGetRemappedRows (Ampere and newer).
Cost: one driver call per GPU per minute.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpuvigil_agent.driver_errors import NotSupported
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_protos import entity
from gpuvigil_protos.catalog import (
    GPU_REMAPPED_ROWS_CORRECTABLE,
    GPU_REMAPPED_ROWS_UNCORRECTABLE,
    GPU_ROW_REMAP_FAILURE,
    GPU_ROW_REMAP_PENDING,
)

if TYPE_CHECKING:
    from gpuvigil_agent.nvml import Device


class RemappedRows:
    """Yield two counts and two flags."""

    name = "gpu_remapped_rows"
    period_s = 60.0
    metrics = (
        GPU_REMAPPED_ROWS_CORRECTABLE,
        GPU_REMAPPED_ROWS_UNCORRECTABLE,
        GPU_ROW_REMAP_FAILURE,
        GPU_ROW_REMAP_PENDING,
    )

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices

    def sample(self) -> Iterator[Sample]:
        """Read all devices once. Raises GpuLost when a board has fallen off the bus."""
        for device in self._devices:
            try:
                rows = device.remapped_rows()
            except NotSupported:
                continue
            name = entity.gpu(device.uuid)
            yield Sample(GPU_REMAPPED_ROWS_CORRECTABLE, name, rows.correctable)
            yield Sample(GPU_REMAPPED_ROWS_UNCORRECTABLE, name, rows.uncorrectable)
            yield Sample(GPU_ROW_REMAP_PENDING, name, rows.pending)
            yield Sample(GPU_ROW_REMAP_FAILURE, name, rows.failure)
