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

    def dump(self, **_options: bool) -> str:
        """Answer `_dump_fr_trace_json(includeCollectives=False)`."""
        place = self.place()
        row = {f"last_{name}_collective": value for name, value in place._asdict().items()}
        return json.dumps({"pg_status": {_GROUP: row}})

    def install(self, world_size: int) -> None:
        """Become what the hook finds in this process."""
        ranks = {rank: rank for rank in range(world_size)}
        world = SimpleNamespace(pg_names={_GROUP: _GROUP}, pg_group_ranks={_GROUP: ranks})
        _module("torch.distributed.distributed_c10d", _world=world)
        _module("torch._C._distributed_c10d", _dump_fr_trace_json=self.dump)


def _module(name: str, **attributes: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(attributes)
    sys.modules[name] = module
