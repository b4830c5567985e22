"""The simulated kernel log: ordinary lines, and the lines that the faults make the kernel write.

Xid lines come at the instant of NVML's Xid events. Lines of before the start of reading are not told again,
as with a journal that is followed from its end.
"""

from __future__ import annotations

import asyncio
import bisect
import time
from collections.abc import AsyncIterator, Iterator
from typing import Final

from gpuvigil_agent.config import Simulate
from gpuvigil_agent.kernel_sources import KernelRecord
from gpuvigil_agent.simulate import noise
from gpuvigil_agent.simulate.faults import GpuLostXid79, NvlinkDown, NvlinkErrors
from gpuvigil_agent.simulate.links import Links
from gpuvigil_agent.simulate.world import Clock, World
from gpuvigil_agent.simulate.xids import xids

_KERNEL, _DAEMON = 0, 3
_ERROR, _WARNING, _NOTICE, _INFO = 3, 4, 5, 6
_ORDINARY_EVERY_SECONDS = 20
_SECOND_NS = 1_000_000_000
_SWITCH_PCI = "0000:05:00.0"
_ORDINARY: Final = (
    (
        _KERNEL,
        _INFO,
        "perf: interrupt took too long (2512 > 2500), lowering sample rate",
    ),
    (_KERNEL, _INFO, "nvidia-uvm: Loaded the UVM driver, major device number 508."),
    (
        _KERNEL,
        _NOTICE,
        'audit: type=1400 apparmor="STATUS" name="docker-default"',
    ),
    (_KERNEL, _INFO, "hrtimer: interrupt took 5312 ns"),
    (_KERNEL, _INFO, "overlayfs: fs on '/var/lib/containerd/l1' does not support file handles"),
    (_KERNEL, _INFO, "NVRM: Persistence mode is deprecated and will be removed in a future release."),
    (_KERNEL, _WARNING, "python3[41201]: segfault at 10 ip 00007f2b error 4 in libcudart.so.12[7f2b+a0000]"),
    (_DAEMON, _INFO, "systemd[1]: Started Session 412 of User train."),
    (_DAEMON, _INFO, "containerd[1820]: starting signal loop namespace=k8s.io"),
)

Line = tuple[int, int, int, str]
"""Time in nanoseconds, facility, priority, text."""


async def simulated_source(
    config: Simulate, node: str, clock: Clock = time.time_ns
) -> AsyncIterator[KernelRecord]:
    """Yield records as they are written, for ever. Raises ConfigError like the rest of the simulation."""
    world = World(config, node, clock)
    now_ns = clock()
    coming = _merged(world, now_ns)
    for sequence, (time_ns, facility, priority, text) in enumerate(coming):
        await asyncio.sleep(max(0, time_ns - clock()) / _SECOND_NS)
        yield KernelRecord(facility, priority, sequence, time_ns, text)


def _merged(world: World, after_ns: int) -> Iterator[Line]:
    """Ordinary lines and the faults' lines after an instant, oldest first."""
    faults = fault_lines(world)
    place = bisect.bisect_left(faults, after_ns, key=lambda line: line[0])
    for ordinary in _ordinary(world, after_ns):
        while place < len(faults) and faults[place][0] <= ordinary[0]:
            yield faults[place]
            place += 1
        yield ordinary


def _ordinary(world: World, after_ns: int) -> Iterator[Line]:
    second = world.second(after_ns)
    while True:
        second += 1
        word = noise.mix(world.key, second, 50)
        if word % _ORDINARY_EVERY_SECONDS == 0:
            facility, priority, text = _ORDINARY[word // _ORDINARY_EVERY_SECONDS % len(_ORDINARY)]
            yield (world.start_ns + second * _SECOND_NS, facility, priority, text)


def fault_lines(world: World) -> list[Line]:
    """All lines that this node's faults make the kernel write, oldest first."""
    found: list[Line] = []
    for xid in xids(world):
        text = f"NVRM: Xid (PCI:{_pci(world, xid.gpu)}): {xid.code}, {xid.text}"
        found.append((xid.time_ns, _KERNEL, _ERROR, text))
    for placed, lost in world.placed(GpuLostXid79):
        text = f"NVRM: GPU {_pci(world, lost.gpu)}.0: GPU has fallen off the bus."
        found.append((placed.start_ns, _KERNEL, _ERROR, text))
    for placed, bad in world.placed(NvlinkErrors):
        text = _sxid_line("20001, Non-fatal", bad.gpu, bad.link, "TX Replay Error")
        found.append((placed.start_ns + _SECOND_NS, _KERNEL, _ERROR, text))
    for placed, down in world.placed(NvlinkDown):
        if down.xid:
            text = _sxid_line("20034, Fatal", down.gpu, down.link, "LTSSM Fault Up (First)")
            found.append((placed.start_ns, _KERNEL, _ERROR, text))
    for time_ns, interface, up in Links(world).edges():
        text = f"mlx5_core 0000:5e:00.0 {interface}: Link {'up' if up else 'down'}"
        found.append((time_ns, _KERNEL, _INFO, text))
    return sorted(found, key=lambda line: line[0])


def _sxid_line(head: str, gpu: int, link: int, words: str) -> str:
    """A line of the NVSwitch at the link's other end; each GPU's links spread over the switch's ports."""
    return f"nvidia-nvswitch0: SXid (PCI:{_SWITCH_PCI}): {head}, Link {(gpu * 4 + link // 4) % 64} {words}"


def _pci(world: World, gpu: int) -> str:
    domain, bus = world.pci_address(gpu)
    return f"{domain:04x}:{bus:02x}:00"
