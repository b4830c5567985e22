"""Carrier of the simulated network interfaces: up, down, or flapping."""

from __future__ import annotations

from gpuvigil_agent.simulate.faults import NicDown, NicFlap
from gpuvigil_agent.simulate.scenario import Placed
from gpuvigil_agent.simulate.world import World

_SINCE_BOOT = 3  # changes while the node booted


class Links:
    """Every interface of one node, as a function of time."""

    def __init__(self, world: World) -> None:
        self._world = world

    def up(self, interface: str, now_ns: int) -> bool:
        """Whether the interface has a carrier."""
        return self._toggles(interface, now_ns) % 2 == 0

    def changes(self, interface: str, now_ns: int) -> int:
        """Times the carrier came or went since boot."""
        return _SINCE_BOOT + self._toggles(interface, now_ns)

    def edges(self) -> list[tuple[int, str, bool]]:
        """All changes of faults that end, and the first hour of those that do not: (time, interface, up)."""
        found = []
        for placed, down in self._world.placed(NicDown):
            found.append((placed.start_ns, down.interface, False))
            if placed.end_ns is not None:
                found.append((placed.end_ns, down.interface, True))
        for placed, flap in self._world.placed(NicFlap):
            end_ns = placed.end_ns or placed.start_ns + 3_600_000_000_000
            begin_ns = placed.start_ns
            while begin_ns < end_ns:
                found.append((begin_ns, flap.interface, False))
                found.append((min(end_ns, begin_ns + int(flap.down * 1e9)), flap.interface, True))
                begin_ns += int(flap.period * 1e9)
        return sorted(found)

    def _toggles(self, interface: str, now_ns: int) -> int:
        total = 0
        for placed, down in self._world.placed(NicDown):
            if down.interface == interface and now_ns >= placed.start_ns:
                total += 1 if placed.active(now_ns) else 2
        for placed, flap in self._world.placed(NicFlap):
            if flap.interface == interface and now_ns >= placed.start_ns:
                total += _flap_toggles(placed, flap, now_ns)
        return total


def _flap_toggles(placed: Placed, flap: NicFlap, now_ns: int) -> int:
    """Twice the cycles begun, less one while the link is down in the current one."""
    cycles, inside_s = divmod(placed.elapsed_s(now_ns), float(flap.period))
    active = placed.active(now_ns)
    begun = int(cycles) + (1 if active or inside_s > 0 else 0)
    return 2 * begun - (1 if active and inside_s < flap.down else 0)
