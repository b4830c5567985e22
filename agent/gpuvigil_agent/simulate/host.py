"""The simulated host as files: the text of /proc and /sys that the real host samplers read.

/proc/stat has no line for each core. What is not simulated raises FileNotFoundError, as on a real host.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from gpuvigil_agent.config import Simulate
from gpuvigil_agent.host_files import FilesystemUse
from gpuvigil_agent.simulate import cost, host_text
from gpuvigil_agent.simulate.host_second import HostPhysics
from gpuvigil_agent.simulate.links import Links
from gpuvigil_agent.simulate.storage import MOUNTINFO, MOUNTS, meminfo, usage
from gpuvigil_agent.simulate.truth import Truth
from gpuvigil_agent.simulate.world import Clock, World

_NET = "/sys/class/net"


class SimulatedHostFiles:
    """HostFiles of one simulated node. Also writes the truth of host faults; one object an agent.

    Raises ConfigError when the scenario or the profile cannot be used.
    """

    def __init__(self, config: Simulate, node: str, clock: Clock = time.time_ns) -> None:
        self._world = World(config, node, clock)
        self._links = Links(self._world)
        self._physics = HostPhysics(self._world, self._links)
        self._files = self._table()
        Truth(self._world, "host").start()

    def _table(self) -> dict[str, Callable[[int], str]]:
        at, fraction = self._physics.at, self._world.fraction
        return {
            "/proc/stat": lambda now: host_text.stat(at(now), fraction(now), self._world.start_ns),
            "/proc/loadavg": lambda now: host_text.loadavg(at(now)),
            "/proc/meminfo": lambda now: meminfo(self._world, now),
            "/proc/vmstat": lambda _now: "nr_free_pages 268435456\npgpgin 0\npgpgout 0\noom_kill 0\n",
            "/proc/mounts": lambda _now: MOUNTS,
            "/proc/self/mounts": lambda _now: MOUNTS,
            "/proc/self/mountinfo": lambda _now: MOUNTINFO,
            "/proc/diskstats": lambda now: host_text.diskstats(at(now), fraction(now)),
            "/proc/net/dev": lambda now: host_text.net_dev(at(now), fraction(now), self._world.interfaces),
            "/proc/pressure/cpu": lambda now: host_text.pressure(at(now).pressure.cpu),
            "/proc/pressure/memory": lambda now: host_text.pressure(at(now).pressure.memory),
            "/proc/pressure/io": lambda now: host_text.pressure(at(now).pressure.io),
        }

    def read(self, path: str) -> str:
        """Return a simulated file. Raises FileNotFoundError for any other."""
        with cost.counted():
            if path in self._files:
                return self._files[path](self._world.clock())
            return self._interface_file(path)

    def names(self, path: str) -> list[str]:
        """List /sys/class/net and what is in it. Raises FileNotFoundError for any other directory."""
        if path.rstrip("/") == _NET:
            return sorted([*self._world.interfaces, "lo"])
        name = path.removeprefix(f"{_NET}/").rstrip("/")
        if name in self._world.interfaces:
            return ["address", "carrier", "carrier_changes", "device", "flags", "operstate", "speed", "type"]
        if name.removesuffix("/device") in self._world.interfaces:
            return ["driver", "vendor"]
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def usage(self, mount_point: str) -> FilesystemUse:
        """Answer statvfs. Raises FileNotFoundError for a mount point that is not there."""
        with cost.counted():
            return usage(self._world, mount_point, self._world.clock())

    def _interface_file(self, path: str) -> str:
        name, _, file = path.removeprefix(f"{_NET}/").partition("/")
        now_ns = self._world.clock()
        if path.startswith(_NET) and name in self._world.interfaces:
            number = self._world.interfaces.index(name)
            up, changes = self._links.up(name, now_ns), self._links.changes(name, now_ns)
            files = host_text.interface_files(name, number, up=up, changes=changes)
            if file in files:
                return files[file] + "\n"
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
