"""One simulated node: its clock, job, GPUs' identities and faults; the same in every process of the agent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

from gpuvigil_agent.config import Simulate
from gpuvigil_agent.simulate import noise
from gpuvigil_agent.simulate.fault import Fault
from gpuvigil_agent.simulate.load import Load, load_at
from gpuvigil_agent.simulate.profile import load_profile
from gpuvigil_agent.simulate.scenario import Placed, Scenario, load_scenario, place
from gpuvigil_protos.settings import ConfigError

Clock = Callable[[], int]
F = TypeVar("F", bound=Fault)
DATA_DISK: Final = "nvme0n1"
ROOT_DISK: Final = "nvme1n1"
FILESYSTEMS: Final = {"/": (960_000_000_000, 0.35), "/scratch": (7_680_000_000_000, 0.4)}
"""Mount point -> size in bytes, used share."""


class World:
    """What a config and a node name mean. `clock` gives nanoseconds UTC and is replaced in tests.

    start_ns 0 in the config means now: the agent sets it before it starts its driver process, so that both
    count from one instant.
    """

    def __init__(
        self, config: Simulate, node: str, clock: Clock = time.time_ns, scenario: Scenario | None = None
    ) -> None:
        """scenario: the config's, where it has been read before."""
        self.config, self.node, self.clock = config, node, clock
        self.start_ns = config.start_ns or clock()
        self.profile = load_profile(config.profile)
        self.key = noise.mix(config.seed, noise.key_of(node))
        if scenario is None:
            scenario = load_scenario(Path(config.scenario)) if config.scenario else Scenario("", ())
        self.scenario = scenario
        self.interfaces = ("eth0", *(f"ib{port}" for port in range(min(8, max(1, config.gpus)))))
        self.faults = place(scenario, node, self.start_ns)
        self.jobs = tuple(job for job in scenario.jobs if job.node_place(node) is not None)
        for placed in self.faults:
            self._check(placed)
        for job in self.jobs:
            if job.first_gpu + job.ranks_per_node > config.gpus:
                last = job.first_gpu + job.ranks_per_node - 1
                raise ConfigError(
                    f"{config.scenario}: job {job.name}: ranks_per_node: expected GPUs below {config.gpus} "
                    f"on node {node}, got GPU {last}"
                )

    def _check(self, placed: Placed) -> None:
        """Refuse a fault of a part that this node does not have. Raises ConfigError."""
        parts: dict[str, Sequence[int | str]] = {
            "gpu": range(self.config.gpus),
            "gpus": range(self.config.gpus),
            "link": range(self.profile.nvlinks),
            "interface": self.interfaces,
            "disk": (DATA_DISK, ROOT_DISK),
            "filesystem": tuple(FILESYSTEMS),
        }
        for name, known in parts.items():
            named = getattr(placed.fault, name, None)
            for part in named if isinstance(named, list) else [] if named is None else [named]:
                if part not in known:
                    raise ConfigError(
                        f"{self.config.scenario}: fault {placed.number} ({placed.fault.kind}): {name}: "
                        f"expected {_words(known)} on node {self.node}, got {part!r}"
                    )

    def second(self, now_ns: int) -> int:
        """Whole seconds since the start; negative before it."""
        return (now_ns - self.start_ns) // 1_000_000_000

    def fraction(self, now_ns: int) -> float:
        """How much of the current second has passed, 0 to 1."""
        return ((now_ns - self.start_ns) % 1_000_000_000) / 1e9

    def load(self, second: int) -> Load:
        """The job's demand in one second."""
        return load_at(self.config.load, self.config.seed, second)

    def placed(self, kind: type[F]) -> Iterator[tuple[Placed, F]]:
        """Yield this node's faults of one kind, past and future."""
        for placed in self.faults:
            if isinstance(placed.fault, kind):
                yield placed, placed.fault

    def active(self, kind: type[F], now_ns: int) -> Iterator[tuple[Placed, F]]:
        """Yield the faults of one kind that hold at this instant."""
        for placed, fault in self.placed(kind):
            if placed.active(now_ns):
                yield placed, fault

    def uuid(self, index: int) -> str:
        """The UUID of the GPU in a slot: made of seed, node and slot."""
        text = f"{noise.mix(self.key, index, 1):016x}{noise.mix(self.key, index, 2):016x}"
        return f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def pci_address(self, index: int) -> tuple[int, int]:
        """PCI domain and bus of a slot; a second board of eight is in the next domain."""
        domain, slot = divmod(index, len(self.profile.pci_buses))
        return domain, self.profile.pci_buses[slot]


def _words(known: Sequence[int | str]) -> str:
    return f"below {len(known)}" if isinstance(known, range) else " or ".join(str(part) for part in known)
