"""Kinds of fault that only a training loop shows: what a rank, its input, its saves or its losses do.

They name a job of the scenario and, where it is one rank's, the rank; the node follows from both. Sizes are
field figures (a shared network halves its bandwidth, a batch of long sequences costs a third more).
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from gpuvigil_agent.simulate.fault import Fault
from gpuvigil_protos.settings import Seconds


class LoopFault(Fault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A fault of a job as a whole. `node` may be left out: it is that of the job's rank 0."""

    where = "job"
    node: str | int = ""
    job: str = msgspec.field()


class RankFault(LoopFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A fault of one rank of a job; its node is the rank's."""

    rank: int = 0


class RankHang(RankFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The rank stands in its own code and never enqueues its collective: a deadlock on the host."""

    fault_class, limit_s = "hang", 45


class RankHangDevice(RankFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The rank has enqueued, its device does not do: `launch` never starts, `transfer` never completes."""

    fault_class, limit_s = "hang", 45
    stage: Literal["launch", "transfer"] = "transfer"


class RankKilled(RankFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The rank's process is killed, as by the kernel when memory runs out or by hand."""

    fault_class, limit_s = "process_dead", 10


class RankSlow(RankFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The rank computes `factor` times as long, and no counter says why."""

    fault_class, limit_s = "straggler", 30
    factor: float = 1.4


class DataStall(LoopFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Batches come `wait` later than usual, or never; to one rank, or to all where none is named."""

    fault_class, limit_s = "data_stall", 60
    rank: int | None = None
    wait: Seconds | None = None


class CheckpointStall(LoopFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A save of the job takes `wait` longer than usual, or never ends; on one rank, or on all."""

    fault_class, limit_s = "checkpoint_stall", 600
    rank: int | None = None
    wait: Seconds | None = None


class LossSpike(LoopFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Loss and gradient norm jump to `times` what they were, on all ranks."""

    fault_class, limit_s = "loss_fault", 60
    times: float = 8.0


class LossNan(LoopFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Loss and gradient norm are no numbers any more, on all ranks."""

    fault_class, limit_s = "loss_fault", 60


class Congestion(LoopFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The network between the job's nodes is shared: collectives take `factor` times as long for everyone."""

    fault_class, limit_s, silent = "congestion", 60, True
    factor: float = 3.0


class WorkloadImbalance(LoopFault, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One rank has `factor` times the tokens, and so the time; without `rank` another one in each step."""

    fault_class, limit_s = "workload_imbalance", 60
    rank: int | None = None
    factor: float = 1.35


LOOP_KINDS: Final[dict[str, type[Fault]]] = {
    "rank_hang": RankHang,
    "rank_hang_device": RankHangDevice,
    "rank_killed": RankKilled,
    "rank_slow": RankSlow,
    "data_stall": DataStall,
    "checkpoint_stall": CheckpointStall,
    "loss_spike": LossSpike,
    "loss_nan": LossNan,
    "congestion": Congestion,
    "workload_imbalance": WorkloadImbalance,
}
