"""What PyTorch's own record of collectives says in a simulated rank, in the place where the hook asks for it.

Stands in for torch's private c10d modules, as the simulated library stands in for NVML: everything of the
hook's above them is the real code. Each step has a few collectives, one a bucket of gradients.
"""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from gpuvigil_agent.simulate.job_steps import Step

_BUCKETS = 4
_GROUP = "0"
_ELEMENTS = 1 << 23  # of a bucket of gradients


class Place(NamedTuple):
    """How far a rank came in its one group: the newest collective enqueued, started and completed."""

    enqueued: int
    started: int
    completed: int


class Recorder:
    """One rank's. `step` and `arrived` are set by its loop."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self.step: Step | None = None
        self.arrived = False

    def place(self) -> Place:
        """Say how far this rank came, while it stands in its step."""
        step = self.step
        if step is None:
            return Place(0, 0, 0)
        before = step.number * _BUCKETS
        if not self.arrived:
            return Place(before, before, before)
        stuck, posted = step.stuck, before + _BUCKETS
        if stuck is None or max(step.arrive) >= step.done:
            return Place(posted, before + 1, before)
        if stuck.stage == "launch":
            return Place(posted, before + (stuck.rank != self._rank), before)
        others = stuck.rank != self._rank
        return Place(posted, before + 1 + others, before + others)

    def dump(self, includeCollectives: bool = False, **_options: bool) -> str:  # noqa: N803 - torch's name
        """Answer `_dump_fr_trace_json`: how far the group came, and its newest records where asked."""
        place = self.place()
        row = {f"last_{name}_collective": value for name, value in place._asdict().items()}
        found: dict[str, Any] = {"pg_status": {_GROUP: row}}
        if includeCollectives:
            first = max(1, place.completed - _BUCKETS + 1)
            found["entries"] = [_record(number, place) for number in range(first, place.enqueued + 1)]
        return json.dumps(found)

    def install(self, world_size: int) -> None:
        """Become what the hook finds in this process."""
        ranks = {rank: rank for rank in range(world_size)}
        world = SimpleNamespace(pg_names={_GROUP: _GROUP}, pg_group_ranks={_GROUP: ranks})
        _module("torch.distributed.distributed_c10d", _world=world)
        _module("torch._C._distributed_c10d", _dump_fr_trace_json=self.dump)


def _record(number: int, place: Place) -> dict[str, Any]:
    """One collective as torch's recorder keeps it (FlightRecorder.hpp), without times and stacks."""
    done, begun = number <= place.completed, number <= place.started
    return {
        "record_id": number - 1, "pg_id": 0, "process_group": [_GROUP, "default_pg"], "is_p2p": False,
        "collective_seq_id": number, "p2p_seq_id": 0, "op_id": number, "profiling_name": "nccl:all_reduce",
        "input_sizes": [[_ELEMENTS]], "input_dtypes": ["BFloat16"], "output_sizes": [[_ELEMENTS]],
        "output_dtypes": ["BFloat16"], "retired": done,
        "state": "completed" if done else "started" if begun else "scheduled",
    }  # fmt: skip


def _module(name: str, **attributes: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(attributes)
    sys.modules[name] = module
