"""The host samplers, one row each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gpuvigil_agent.config import Host
from gpuvigil_agent.host_files import HostFiles
from gpuvigil_agent.samplers.base import Sampler
from gpuvigil_agent.samplers.disk import Disks
from gpuvigil_agent.samplers.filesystem import Filesystems
from gpuvigil_agent.samplers.host_cpu import HostCpu
from gpuvigil_agent.samplers.host_memory import HostMemory
from gpuvigil_agent.samplers.host_pressure import HostPressure
from gpuvigil_agent.samplers.network import Network, NetworkSpeed

HOST_SAMPLERS: Final[tuple[Callable[[HostFiles], Sampler], ...]] = (
    HostCpu,
    HostPressure,
    HostMemory,
    Disks,
    Filesystems,
    Network,
    NetworkSpeed,
)


def build_host_samplers(files: HostFiles, host: Host) -> list[Sampler]:
    """Make one of each row, as the config's [host] table asks for."""
    return [
        Filesystems(files, host.filesystems) if row is Filesystems else row(files) for row in HOST_SAMPLERS
    ]
