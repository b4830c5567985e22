"""How busy the host's cores are, and how many processes wait for storage.

Source: /proc/stat (jiffies since boot, kernel documentation filesystems/proc), /proc/loadavg.
Cost: two reads a tick.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpuvigil_agent.host_files import HostFiles
from gpuvigil_agent.samplers.base import Sample, SourceAbsentError
from gpuvigil_protos import catalog, entity

_IDLE, _IOWAIT, _FIELDS = 3, 4, 8  # guest time is inside user time, so the first eight fields are all


class HostCpu:
    """Yield the shares since the last reading; the first reading has none yet."""

    name = "host_cpu"
    period_s = 1.0

    def __init__(self, files: HostFiles) -> None:
        self._files = files
        self._last: list[int] | None = None

    def sample(self) -> Iterator[Sample]:
        """Read once. Raises SourceAbsentError when /proc/stat cannot be read."""
        try:
            stat = self._files.read("/proc/stat")
        except OSError as error:
            raise SourceAbsentError(f"/proc/stat: {error.strerror}") from None
        yield from self._shares(stat)
        start = stat.find("\nprocs_blocked ")
        if start >= 0 and (blocked := stat[start + 15 : start + 30].split("\n", 1)[0].strip()).isdecimal():
            yield Sample(catalog.NODE_PROCESSES_BLOCKED, entity.NODE, float(blocked))
        yield from self._load()

    def _shares(self, stat: str) -> Iterator[Sample]:
        words = stat.split("\n", 1)[0].split()
        if len(words) <= _FIELDS or words[0] != "cpu" or not all(w.isdecimal() for w in words[1:]):
            self._last = None
            return
        now = [int(word) for word in words[1 : _FIELDS + 1]]
        last, self._last = self._last, now
        if last is None:
            return
        spent = [max(0, new - old) for new, old in zip(now, last, strict=True)]  # iowait may step back
        total = sum(spent)
        if total <= 0:
            return
        waited = spent[_IOWAIT] / total
        busy = (total - spent[_IDLE] - spent[_IOWAIT]) / total
        yield Sample(catalog.NODE_CPU_UTILIZATION_RATIO, entity.NODE, busy)
        yield Sample(catalog.NODE_CPU_IOWAIT_RATIO, entity.NODE, waited)

    def _load(self) -> Iterator[Sample]:
        try:
            load = float(self._files.read("/proc/loadavg").split(" ", 1)[0])
        except (OSError, ValueError):
            return  # absent or cut short: the series is left out
        if 0 <= load <= catalog.NODE_LOAD1.high:  # "nan" is a number to float(), too
            yield Sample(catalog.NODE_LOAD1, entity.NODE, load)
