"""Pressure stall: the share of time in which some task waited for a core, memory or storage.

Source: /proc/pressure/{cpu,memory,io}, `some avg10` [percent] (kernel documentation accounting/psi).
Cost: three reads a tick. A kernel without PSI has none of these files: the sampler is absent then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gpuvigil_agent.host_files import HostFiles
from gpuvigil_agent.samplers.base import Sample, SourceAbsentError
from gpuvigil_protos import catalog, entity

_FILES: Final = (
    ("/proc/pressure/cpu", catalog.NODE_CPU_PRESSURE_RATIO),
    ("/proc/pressure/memory", catalog.NODE_MEMORY_PRESSURE_RATIO),
    ("/proc/pressure/io", catalog.NODE_IO_PRESSURE_RATIO),
)


class HostPressure:
    """Yield one share for each resource that the kernel accounts."""

    name = "host_pressure"
    period_s = 1.0

    def __init__(self, files: HostFiles) -> None:
        self._files = files

    def sample(self) -> Iterator[Sample]:
        """Read once. Raises SourceAbsentError when the kernel has no PSI (not built, or psi=0)."""
        absent = 0
        for path, metric in _FILES:
            try:
                text = self._files.read(path)
            except OSError:  # psi=0 leaves the files and fails the read with EOPNOTSUPP
                absent += 1
                continue
            share = some_avg10(text)
            if share is not None:
                yield Sample(metric, entity.NODE, share)
        if absent == len(_FILES):
            raise SourceAbsentError("/proc/pressure: this kernel accounts no pressure")


def some_avg10(text: str) -> float | None:
    """Return the 10 s share as a ratio from a pressure file's text, None when it says nothing usable."""
    if not text.startswith("some avg10="):
        return None
    try:
        percent = float(text[11:24].split(" ", 1)[0])
    except ValueError:
        return None
    return percent / 100 if 0 <= percent <= 100 else None
