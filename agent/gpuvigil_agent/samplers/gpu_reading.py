"""What all GPU samplers share: a reading that the board does not give is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from gpuvigil_agent.driver_errors import NotSupported
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_protos.catalog import Metric

Reading = tuple[Metric, Callable[[], float], float]
"""What, how to read it, and the factor from NVML's unit to the catalogue's."""


def supported(entity: str, readings: Iterable[Reading]) -> Iterator[Sample]:
    """Read each once. NotSupported leaves that one out; GpuLost and other driver errors pass through."""
    for metric, read, factor in readings:
        try:
            value = read() * factor
        except NotSupported:
            continue
        yield Sample(metric, entity, value)
