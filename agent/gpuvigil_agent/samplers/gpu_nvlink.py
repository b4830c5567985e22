"""NVLinks of every GPU: how many are up, and the errors of each.

Source: NVML nvmlDeviceGetNvLinkState; fields NVML_FI_DEV_NVLINK_ERROR_DL_{CRC,REPLAY,RECOVERY} with the link
as scope, and where a board has not these, nvmlDeviceGetNvLinkErrorCounter.
Cost every 10 s: a driver call per link for the state, and one per GPU for the errors (four per link by
the older way).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from gpuvigil_agent.driver_errors import NotSupported
from gpuvigil_agent.driver_values import (
    FIELD_NVLINK_CRC,
    FIELD_NVLINK_RECOVERIES,
    FIELD_NVLINK_REPLAYS,
    NVLINK_CRC_DATA,
    NVLINK_CRC_FLIT,
    NVLINK_RECOVERY,
    NVLINK_REPLAY,
)
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_agent.samplers.gpu_reading import supported
from gpuvigil_protos import entity
from gpuvigil_protos.catalog import (
    GPU_NVLINK_LINKS,
    GPU_NVLINK_LINKS_ACTIVE,
    NVLINK_CRC_ERRORS_TOTAL,
    NVLINK_RECOVERY_ERRORS_TOTAL,
    NVLINK_REPLAY_ERRORS_TOTAL,
)

if TYPE_CHECKING:
    from gpuvigil_agent.nvml import Device

_LINKS_MAX: Final = 36  # NVML_NVLINK_MAX_LINKS
_FIELDS = {
    FIELD_NVLINK_CRC: NVLINK_CRC_ERRORS_TOTAL,
    FIELD_NVLINK_REPLAYS: NVLINK_REPLAY_ERRORS_TOTAL,
    FIELD_NVLINK_RECOVERIES: NVLINK_RECOVERY_ERRORS_TOTAL,
}


class NvLink:
    """Yield link counts per GPU and error totals per link."""

    name = "gpu_nvlink"
    period_s = 10.0
    metrics = (
        GPU_NVLINK_LINKS,
        GPU_NVLINK_LINKS_ACTIVE,
        NVLINK_CRC_ERRORS_TOTAL,
        NVLINK_RECOVERY_ERRORS_TOTAL,
        NVLINK_REPLAY_ERRORS_TOTAL,
    )

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices

    def sample(self) -> Iterator[Sample]:
        """Read all devices once; a GPU without NVLink yields nothing. Raises GpuLost."""
        for device in self._devices:
            states = _states(device)
            if not states:
                continue
            name = entity.gpu(device.uuid)
            yield Sample(GPU_NVLINK_LINKS, name, len(states))
            yield Sample(GPU_NVLINK_LINKS_ACTIVE, name, sum(states.values()))
            yield from _errors(device, list(states))


def _states(device: Device) -> dict[int, bool]:
    """Return up or down by link; the first link that the board lacks ends the search."""
    states: dict[int, bool] = {}
    for link in range(_LINKS_MAX):
        try:
            states[link] = device.nvlink_active(link)
        except NotSupported:
            break
    return states


def _errors(device: Device, links: Sequence[int]) -> Iterator[Sample]:
    fields = device.fields((field, link) for link in links for field in _FIELDS)
    if not fields:
        for link in links:
            yield from _counters(device, link)
    for (field, link), value in fields.items():
        yield Sample(_FIELDS[field], entity.nvlink(device.uuid, link), value)


def _counters(device: Device, link: int) -> Iterator[Sample]:
    """Read one link the older way; flit and data CRC errors are one series."""

    def crc() -> int:
        return device.nvlink_errors(link, NVLINK_CRC_FLIT) + device.nvlink_errors(link, NVLINK_CRC_DATA)

    readings = [
        (NVLINK_CRC_ERRORS_TOTAL, crc, 1.0),
        (NVLINK_REPLAY_ERRORS_TOTAL, lambda: device.nvlink_errors(link, NVLINK_REPLAY), 1.0),
        (NVLINK_RECOVERY_ERRORS_TOTAL, lambda: device.nvlink_errors(link, NVLINK_RECOVERY), 1.0),
    ]
    yield from supported(entity.nvlink(device.uuid, link), readings)
