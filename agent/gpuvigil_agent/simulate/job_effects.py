"""What the faults of all of a job's nodes do to its loop: who computes longer, waits, stands or dies.

Each effect follows from the fault's own physics: a clock that fell, lanes that are gone, a retry that runs
out. Every node of the job computes the same from scenario, seed and start; nobody asks another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from gpuvigil_agent.config import Simulate
from gpuvigil_agent.simulate import faults as kinds
from gpuvigil_agent.simulate import loop_faults as loops
from gpuvigil_agent.simulate import noise
from gpuvigil_agent.simulate.gpu import GpuPhysics
from gpuvigil_agent.simulate.job import Job
from gpuvigil_agent.simulate.links import Links
from gpuvigil_agent.simulate.scenario import Placed, Scenario
from gpuvigil_agent.simulate.world import DATA_DISK, World

NEVER: Final = 1 << 62
SECOND_NS: Final = 1_000_000_000
_READ_SHARE = 0.08  # of a step: what the loader's workers need for a batch; hidden while a step is longer
_COPY_SHARE = 0.01  # of a step: the batch's way over PCIe
_PORT_GB_S, _LANE_GB_S = 50.0, 0.25  # of an InfiniBand port; of a lane of PCIe generation 1
_REPLAY_S, _RECOVERY_S, _ERRORS_A_RECOVERY = 5e-6, 0.03, 500  # of an NVLink, as board.py counts them


class Death(NamedTuple):
    """A process ends: `killed`, or by an `error` that its own code raises."""

    time_ns: int
    how: str


class Stuck(NamedTuple):
    """A collective that a device does not finish: which rank's, where, and until when."""

    rank: int
    stage: str
    end_ns: int


class Down(NamedTuple):
    """A time in which the port of a rank has no carrier."""

    start_ns: int
    end_ns: int
    rank: int


class Effects:
    """One job's. Instants are ns UTC; a rank that no fault touches costs a look into empty tables."""

    def __init__(self, config: Simulate, job: Job, own: str, scenario: Scenario | None = None) -> None:
        self.job, self._key = job, noise.mix(config.seed, noise.key_of(job.name))
        self._worlds = [World(config, name, scenario=scenario) for name in job.node_names(own)]
        self._healthy = msgspec.structs.replace(config, scenario="")
        self._of: dict[int, list[Placed]] = {}  # rank -> faults of its own
        self._all: list[Placed] = []  # faults of the whole job
        self._clocks: dict[int, _Clock] = {}
        self.deaths: dict[int, Death] = {}
        self.downs: list[Down] = []
        for place, world in enumerate(self._worlds):
            for placed in world.faults:
                self._sort(place, world, placed)
            self.downs += self._ports(place, world) if len(self._worlds) > 1 else []
        self.downs.sort()

    def _sort(self, place: int, world: World, placed: Placed) -> None:
        fault, job = placed.fault, self.job
        if isinstance(fault, loops.LoopFault):
            if fault.job == job.name:
                self._sort_loop(placed, fault)
            return
        here = range(place * job.ranks_per_node, (place + 1) * job.ranks_per_node)
        gpu = getattr(fault, "gpu", None)
        rank = None if gpu is None else job.rank_at(place, gpu)
        ranks: Iterable[int] = here if gpu is None else () if rank is None else (rank,)
        for rank in ranks:
            self._of.setdefault(rank, []).append(placed)
            if isinstance(fault, kinds.GpuLostXid79 | kinds.GpuLostSilent | kinds.EccUncorrectable):
                # the next call that waits for the device raises
                self._die(rank, placed.start_ns + int(noise.uniform(self._key, rank) * SECOND_NS), "error")
            elif isinstance(fault, kinds.DriverUnload):
                self._die(rank, placed.start_ns, "killed")
            elif isinstance(fault, kinds.ThermalThrottle | kinds.PowerBrake) and rank not in self._clocks:
                self._clocks[rank] = _Clock(world, self._healthy, job.place_of(rank)[1])

    def _sort_loop(self, placed: Placed, fault: loops.LoopFault) -> None:
        rank = getattr(fault, "rank", None)
        if rank is None:
            self._all.append(placed)
        else:
            self._of.setdefault(rank, []).append(placed)
        if isinstance(fault, loops.RankKilled):
            self._die(fault.rank, placed.start_ns, "killed")

    def _die(self, rank: int, time_ns: int, how: str) -> None:
        if rank not in self.deaths or time_ns < self.deaths[rank].time_ns:
            self.deaths[rank] = Death(time_ns, how)

    def _ports(self, place: int, world: World) -> Iterator[Down]:
        """Times without carrier of the ports that the job's GPUs of one node use, each its own."""
        began: dict[str, int] = {}
        edges = [*Links(world).edges()]
        for time_ns, name, up in edges:
            if not up:
                began.setdefault(name, time_ns)
            elif name in began:
                yield from self._down(place, name, began.pop(name), time_ns)
        for name, time_ns in began.items():
            yield from self._down(place, name, time_ns, NEVER)

    def _down(self, place: int, name: str, start_ns: int, end_ns: int) -> Iterator[Down]:
        if name.startswith("ib"):
            rank = self.job.rank_at(place, int(name[2:]))
            if rank is not None:
                yield Down(start_ns, end_ns, rank)

    def _active(self, rank: int, now_ns: int) -> Iterator[Placed]:
        for placed in self._of.get(rank, ()):
            if placed.active(now_ns):
                yield placed
        for placed in self._all:
            if placed.active(now_ns):
                yield placed

    def none_ever(self, rank: int) -> bool:
        """Tell whether nothing but a neighbour's fault ever touches a rank: most of them."""
        return not self._all and rank not in self._of

    def compute(self, rank: int, now_ns: int) -> float:
        """How many times as long a rank computes: its clock, and what nobody can see."""
        factor = self._clocks[rank].factor(now_ns) if rank in self._clocks else 1.0
        for placed in self._of.get(rank, ()):
            if isinstance(placed.fault, loops.RankSlow) and placed.active(now_ns):
                factor *= placed.fault.factor
        return factor

    def work(self, rank: int, step: int, now_ns: int) -> float:
        """How many times the usual tokens a rank has in a step."""
        share = 1.0
        for placed in self._active(rank, now_ns):
            fault = placed.fault
            if isinstance(fault, loops.WorkloadImbalance):
                chosen = noise.mix(self._key, step, 21) % self.job.world_size
                if fault.rank is not None or rank == chosen:
                    share *= fault.factor
        return share

    def input_s(self, rank: int, now_ns: int) -> float:
        """Seconds that a batch comes later than usual; infinite where it never comes."""
        late, step_s = 0.0, float(self.job.step)
        for placed in self._active(rank, now_ns):
            fault = placed.fault
            if isinstance(fault, loops.DataStall):
                late += math.inf if fault.wait is None and placed.end_ns is None else float(fault.wait or 0)
                if fault.wait is None and placed.end_ns is not None:
                    late += (placed.end_ns - now_ns) / SECOND_NS
            elif isinstance(fault, kinds.DiskSlow) and fault.disk == DATA_DISK:
                late += max(0.0, _READ_SHARE * step_s * fault.latency_factor - step_s)
            elif isinstance(fault, kinds.PcieDowngrade):
                late += _COPY_SHARE * step_s * (self._lanes(fault)[0] - 1)
        return late

    def _lanes(self, fault: kinds.PcieDowngrade) -> tuple[float, float]:
        """How many times as long a copy takes, and GB/s that are left."""
        profile = self._worlds[0].profile
        width = fault.width or profile.pcie_width
        left = _LANE_GB_S * width * 2.0 ** (fault.generation - 1)
        whole = _LANE_GB_S * profile.pcie_width * 2.0 ** (profile.pcie_generation - 1)
        return max(1.0, whole / left), left

    def exchange(self, now_ns: int) -> float:
        """How many times as long a collective takes: the slowest link of all is what it waits for."""
        worst = 1.0
        for placed in (p for rows in self._of.values() for p in rows if p.active(now_ns)):
            fault = placed.fault
            if isinstance(fault, kinds.PcieDowngrade) and len(self._worlds) > 1:
                worst = max(worst, _PORT_GB_S / self._lanes(fault)[1])
            elif isinstance(fault, kinds.NvlinkErrors) and self.job.ranks_per_node > 1:
                rate = fault.errors_per_second
                lost = rate / 2 * _REPLAY_S + rate / _ERRORS_A_RECOVERY * _RECOVERY_S
                worst = max(worst, 1 / (1 - min(0.95, lost)))
            elif isinstance(fault, kinds.NvlinkDown) and self.job.ranks_per_node > 1:
                links = self._worlds[0].profile.nvlinks
                worst = max(worst, links / (links - 1))
        for placed in self._all:
            if isinstance(placed.fault, loops.Congestion) and placed.active(now_ns):
                worst = max(worst, placed.fault.factor)
        return worst

    def stands(self, rank: int, now_ns: int) -> int:
        """Until when a rank stands in its own code, 0 while it does not."""
        until = 0
        for placed in self._of.get(rank, ()):
            fault = placed.fault
            hang = isinstance(fault, loops.RankHang)
            hang |= isinstance(fault, kinds.DriverHang) and fault.call == "readings"
            if hang and placed.active(now_ns):
                until = max(until, placed.end_ns or NEVER)
        return until

    def stuck(self, now_ns: int) -> Stuck | None:
        """Which rank's device does not do what was enqueued."""
        for rank, rows in self._of.items():
            for placed in rows:
                fault = placed.fault
                if isinstance(fault, loops.RankHangDevice) and placed.active(now_ns):
                    return Stuck(rank, fault.stage, placed.end_ns or NEVER)
                fatal = isinstance(fault, kinds.NvlinkDown) and fault.xid and self.job.ranks_per_node > 1
                if fatal and placed.active(now_ns):
                    return Stuck(rank, "transfer", placed.end_ns or NEVER)
        return None

    def save_ns(self, rank: int, now_ns: int) -> int:
        """How long a rank's save takes."""
        seconds = float(self.job.checkpoint)
        for placed in self._active(rank, now_ns):
            fault = placed.fault
            if isinstance(fault, kinds.DiskSlow) and fault.disk == DATA_DISK:
                seconds *= fault.latency_factor
            elif isinstance(fault, loops.CheckpointStall):
                if fault.wait is None:
                    return NEVER if placed.end_ns is None else placed.end_ns - now_ns + int(seconds * 1e9)
                seconds += fault.wait
        return int(seconds * SECOND_NS)

    def loss(self, now_ns: int) -> float:
        """What loss and gradient norm are multiplied with; NaN where they are none."""
        times = 1.0
        for placed in self._all:
            if placed.active(now_ns) and isinstance(placed.fault, loops.LossNan):
                return math.nan
            if placed.active(now_ns) and isinstance(placed.fault, loops.LossSpike):
                times *= placed.fault.times
        return times


class _Clock:
    """How much longer a GPU computes than the same board without its faults."""

    def __init__(self, world: World, healthy: Simulate, slot: int) -> None:
        self._own = GpuPhysics(world, slot)
        self._well = GpuPhysics(World(healthy, world.node), slot)

    def factor(self, now_ns: int) -> float:
        own, well = self._own.at(now_ns), self._well.at(now_ns)
        return max(1.0, well.sm_clock_mhz / own.sm_clock_mhz) if own.context else 1.0
