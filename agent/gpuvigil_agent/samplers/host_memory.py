"""Memory, swap and out-of-memory kills of the host.

Source: /proc/meminfo [kB, meaning KiB], /proc/vmstat oom_kill (since boot, kernel 4.13 and newer).
Cost: two reads a tick.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpuvigil_agent.host_files import HostFiles
from gpuvigil_agent.samplers.base import Sample, SourceAbsentError
from gpuvigil_protos import catalog, entity


class HostMemory:
    """Yield what the kernel says of memory; a line that is missing leaves its metric out."""

    name = "host_memory"
    period_s = 1.0

    def __init__(self, files: HostFiles) -> None:
        self._files = files

    def sample(self) -> Iterator[Sample]:
        """Read once. Raises SourceAbsentError when /proc/meminfo cannot be read."""
        try:
            text = "\n" + self._files.read("/proc/meminfo")
        except OSError as error:
            raise SourceAbsentError(f"/proc/meminfo: {error.strerror}") from None
        for key, metric in (
            ("MemTotal:", catalog.NODE_MEMORY_TOTAL_BYTES),
            ("MemAvailable:", catalog.NODE_MEMORY_AVAILABLE_BYTES),
        ):
            kibibytes = line_value(text, key)
            if kibibytes is not None:
                yield Sample(metric, entity.NODE, kibibytes * 1024.0)
        total, free = line_value(text, "SwapTotal:"), line_value(text, "SwapFree:")
        if total is not None and free is not None and total >= free:
            yield Sample(catalog.NODE_SWAP_USED_BYTES, entity.NODE, (total - free) * 1024.0)
        yield from self._oom_kills()

    def _oom_kills(self) -> Iterator[Sample]:
        try:
            kills = line_value("\n" + self._files.read("/proc/vmstat"), "oom_kill")
        except OSError:
            return  # vmstat may be hidden where meminfo is not
        if kills is not None:
            yield Sample(catalog.NODE_OOM_KILLS_TOTAL, entity.NODE, float(kills))


def line_value(text: str, key: str) -> int | None:
    """Return the number after `key` at the start of a line of `text` (which begins with a newline).

    None when the line is missing, cut short by the end of the text, or no number. `str.find` and no split
    of the whole file: vmstat has 190 lines and one of them matters.
    """
    start = text.find(f"\n{key}")
    end = text.find("\n", start + 1)
    if start < 0 or end < 0:
        return None
    words = text[start + 1 + len(key) : end].split()
    return int(words[0]) if words and words[0].isascii() and words[0].isdecimal() else None
