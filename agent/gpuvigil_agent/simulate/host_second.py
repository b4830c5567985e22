"""The simulated host's physics, a second at a time: cores, memory, two disks and the network, under the job.

Totals are integrated from a fixed second before the start, and grow evenly within a second, so that rates
are right at any pace of reading. RDMA traffic is counted with the interface's own, unlike on a real port.
"""

from __future__ import annotations

import math
import threading
from typing import Final, NamedTuple

from gpuvigil_agent.simulate import noise
from gpuvigil_agent.simulate.faults import DiskSlow
from gpuvigil_agent.simulate.links import Links
from gpuvigil_agent.simulate.load import Load
from gpuvigil_agent.simulate.world import DATA_DISK, ROOT_DISK, World

CORES: Final = 2 * 64
JIFFIES_PER_SECOND: Final = 100 * CORES
SECTOR_BYTES: Final = 512
_SETTLE_SECONDS = 90
_READ_BYTES, _WRITE_BYTES = 1 << 17, 1 << 20  # of one request
_READ_LATENCY_MS, _WRITE_LATENCY_MS = 0.12, 0.35
_COLLECTIVE_BYTES_PER_SECOND = 31e9  # of one port while a collective runs


class Pressure(NamedTuple):
    """Share of time in which some task waited, mean over about 10 s; and the total in seconds."""

    cpu: float
    memory: float
    io: float


class HostSecond(NamedTuple):
    """Levels of one second, and totals and rates by name: `disk.nvme0n1.reads`, `net.ib0.rx`."""

    busy: float
    iowait: float
    running: int
    blocked: int
    load1: float
    pressure: Pressure
    totals: dict[str, float]
    rates: dict[str, float]


class HostPhysics:
    """One host. `at` is safe from many threads; each second is computed once."""

    def __init__(self, world: World, links: Links) -> None:
        self._world, self._links = world, links
        self._lock = threading.Lock()
        self._second = -_SETTLE_SECONDS
        first = HostSecond(0.1, 0.0, 1, 0, 0.1 * CORES, Pressure(0.0, 0.0, 0.0), {}, {})
        self._now = self._step(first, self._second)

    def at(self, now_ns: int) -> HostSecond:
        """Return the second that holds this instant; before the start, the settled one."""
        wanted = self._world.second(now_ns)
        with self._lock:
            while self._second < wanted:
                self._second += 1
                self._now = self._step(self._now, self._second)
            return self._now

    def _step(self, last: HostSecond, second: int) -> HostSecond:
        world = self._world
        load = world.load(second)
        now_ns = world.start_ns + second * 1_000_000_000
        rates = self._disks(load, second, now_ns) | self._network(load, second, now_ns)
        in_flight = rates[f"disk.{DATA_DISK}.weighted_ms"] / 1000
        busy = (0.14 if load.context else 0.01) + 0.08 * load.checkpoint
        busy *= 1 + 0.03 * noise.normal(world.key, second, 30)
        iowait = min(0.3, 0.004 * in_flight)
        rates |= {"cpu.busy": busy * JIFFIES_PER_SECOND, "cpu.iowait": iowait * JIFFIES_PER_SECOND}
        rates["cpu.idle"] = JIFFIES_PER_SECOND - rates["cpu.busy"] - rates["cpu.iowait"]
        waits = Pressure(0.02 * busy, 0.0, 1 - math.exp(-0.02 * in_flight))
        return HostSecond(
            busy=busy,
            iowait=iowait,
            running=max(1, round(busy * CORES)),
            blocked=min(64, int(in_flight / 2)),
            load1=last.load1 + (busy * CORES + in_flight / 2 - last.load1) / 60,
            pressure=Pressure(
                *[old + (new - old) / 10 for old, new in zip(last.pressure, waits, strict=True)]
            ),
            totals={name: last.totals.get(name, 0.0) + last.rates.get(name, 0.0) for name in rates},
            rates=rates,
        )

    def _disks(self, load: Load, second: int, now_ns: int) -> dict[str, float]:
        """Per second: dataset reads and checkpoint writes on the data disk, logs on the root disk."""
        key = self._world.key
        read = (220e6 * load.compute if load.context else 2e4) * (1 + 0.05 * noise.normal(key, second, 31))
        write = 2.4e9 * load.checkpoint * (1 + 0.03 * noise.normal(key, second, 32)) + 5e5
        log = 4e5 * (1 + 0.2 * noise.normal(key, second, 33))
        return self._disk(DATA_DISK, read, write, second, now_ns) | self._disk(
            ROOT_DISK, 2e5, log, second, now_ns
        )

    def _disk(self, name: str, read: float, write: float, second: int, now_ns: int) -> dict[str, float]:
        slower = 1.0
        for _, fault in self._world.active(DiskSlow, now_ns):
            if fault.disk == name:
                slower *= fault.latency_factor
        slower *= 1 + 0.04 * noise.normal(self._world.key, second, noise.key_of(name))
        write_size = _WRITE_BYTES if write > 1e8 else 16 << 10
        reads, writes = read / _READ_BYTES, write / write_size
        read_ms, write_ms = reads * _READ_LATENCY_MS * slower, writes * _WRITE_LATENCY_MS * slower
        row = {
            "reads": reads, "read_sectors": read / SECTOR_BYTES, "read_ms": read_ms,
            "writes": writes, "written_sectors": write / SECTOR_BYTES, "write_ms": write_ms,
            "busy_ms": 1000 * (1 - math.exp(-(read_ms + write_ms) / 1000)), "weighted_ms": read_ms + write_ms,
        }  # fmt: skip
        return {f"disk.{name}.{key}": value for key, value in row.items()}

    def _network(self, load: Load, second: int, now_ns: int) -> dict[str, float]:
        rates: dict[str, float] = {}
        for name in self._world.interfaces:
            wobble = 1 + 0.02 * noise.normal(self._world.key, second, noise.key_of(name))
            if name.startswith("ib"):
                rate = _COLLECTIVE_BYTES_PER_SECOND * load.communication * wobble + 2e3
            else:
                rate = (2e6 + 2e8 * load.checkpoint) * wobble
            up = self._links.up(name, now_ns)
            rates[f"net.{name}.rx"] = rate if up else 0.0
            rates[f"net.{name}.tx"] = rate * (1 + 0.01 * (wobble - 1)) if up else 0.0
        return rates


def _eased(old: Pressure, new: Pressure) -> Pressure:
    """The kernel's mean over about 10 s, one second further."""
    return Pressure(*[was + (now - was) / 10 for was, now in zip(old, new, strict=True)])
