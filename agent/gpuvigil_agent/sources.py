"""Where the agent reads from: this machine, or its simulation."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol

from gpuvigil_agent.config import AgentConfig
from gpuvigil_agent.host_files import HostFiles, RealHostFiles
from gpuvigil_agent.kernel_grammar import normalise_pci
from gpuvigil_agent.samplers.base import Sampler
from gpuvigil_agent.samplers.host_table import build_host_samplers


class _Gpu(Protocol):
    @property
    def uuid(self) -> str: ...
    @property
    def pci_bus_id(self) -> str: ...


def is_simulated_host(config: AgentConfig) -> bool:
    """True where host and kernel log are simulated too."""
    return config.gpu.source == "simulated" and config.simulate.host


def host_samplers(config: AgentConfig, node: str) -> list[Sampler]:
    """Make the host samplers. Raises ConfigError when the simulation's files cannot be used."""
    files: HostFiles = RealHostFiles()
    if is_simulated_host(config):
        from gpuvigil_agent.simulate.host import SimulatedHostFiles  # noqa: PLC0415 - only simulations

        files = SimulatedHostFiles(config.simulate, node)
    return build_host_samplers(files, config.host)


def kernel_release() -> str:
    """Return the kernel's release."""
    return os.uname().release[:100]


def uuid_at(gpus: Iterable[_Gpu], pci: str) -> str | None:
    """Return the UUID of the GPU at a PCI address (`dddd:bb:dd`), None when there is none."""
    for gpu in gpus:
        if normalise_pci(gpu.pci_bus_id) == pci:
            return gpu.uuid
    return None
