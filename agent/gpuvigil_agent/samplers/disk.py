"""Traffic, load and latency of whole disks.

Source: /proc/diskstats (kernel documentation admin-guide/iostats; sectors of 512 bytes, milliseconds).
Cost: one read a tick. Partitions, loop, RAM, zram and device-mapper devices are left out: their traffic
is the whole disk's traffic counted again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from gpuvigil_agent.host_files import HostFiles
from gpuvigil_agent.samplers.base import Sample, SourceAbsentError
from gpuvigil_protos import catalog, entity

_SECTOR_BYTES: Final = 512.0  # of this file's unit, whatever the drive's own sector size
_WHOLE_DISK: Final = re.compile(
    r"(?:[shv]d[a-z]{1,3}|xvd[a-z]{1,2}|nvme\d{1,4}n\d{1,4}|mmcblk\d{1,3}|md\d{1,4}|pmem\d{1,3})\Z"
)
_WORDS_MIN: Final = 14  # kernels before 4.18 stop here; newer ones add discards and flushes


class _Reading(NamedTuple):
    """What one reading leaves for the next: completed requests, their milliseconds, busy milliseconds."""

    completed: int
    request_ms: int
    busy_ms: int


class Disks:
    """Yield totals of every disk, and busy share and latency since the last reading."""

    name = "disk"
    period_s = 1.0

    def __init__(self, files: HostFiles, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._files = files
        self._clock_ns = clock_ns
        self._last: dict[str, _Reading] = {}
        self._last_ns = 0

    def sample(self) -> Iterator[Sample]:
        """Read once. Raises SourceAbsentError when /proc/diskstats cannot be read."""
        try:
            text = self._files.read("/proc/diskstats")
        except OSError as error:
            raise SourceAbsentError(f"/proc/diskstats: {error.strerror}") from None
        now_ns = self._clock_ns()
        elapsed_ms, self._last_ns = (now_ns - self._last_ns) / 1e6, now_ns
        last, self._last = self._last, {}
        for line in text.splitlines():
            words = line.split()
            if len(words) < _WORDS_MIN or not _WHOLE_DISK.match(words[2]):
                continue
            if all(word.isascii() and word.isdecimal() for word in words[3:_WORDS_MIN]):
                yield from self._disk(words, last.get(words[2]), elapsed_ms)

    def _disk(self, words: list[str], last: _Reading | None, elapsed_ms: float) -> Iterator[Sample]:
        name = entity.disk(words[2])
        reads, _, read_sectors, read_ms, writes, _, written_sectors, write_ms, _, busy_ms, _ = map(
            int, words[3:_WORDS_MIN]
        )
        yield Sample(catalog.DISK_READ_BYTES_TOTAL, name, read_sectors * _SECTOR_BYTES)
        yield Sample(catalog.DISK_WRITTEN_BYTES_TOTAL, name, written_sectors * _SECTOR_BYTES)
        yield Sample(catalog.DISK_OPERATIONS_TOTAL, name, float(reads + writes))
        now = _Reading(reads + writes, read_ms + write_ms, busy_ms)
        self._last[words[2]] = now
        if last is None or elapsed_ms <= 0:
            return
        # The millisecond counters are 32 bits wide in the kernel: a wrap or a new drive under the old
        # name gives a negative step, and then there is nothing to say until the next reading.
        if now.busy_ms >= last.busy_ms:
            yield Sample(catalog.DISK_BUSY_RATIO, name, min(1.0, (now.busy_ms - last.busy_ms) / elapsed_ms))
        completed, request_ms = now.completed - last.completed, now.request_ms - last.request_ms
        if completed > 0 and request_ms >= 0:
            yield Sample(catalog.DISK_LATENCY_SECONDS, name, request_ms / completed / 1000)
