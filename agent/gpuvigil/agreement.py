"""How all ranks come to save at one step: what each has seen is reduced every K steps, and acted on K later.

The reduction of one multiple of K is started there, without waiting, and read at the next: by then it is
done, so a step costs nothing. Every rank starts the same reductions at the same calls and reads the same
number, so all act at one step or none does, however late a request reaches some of them.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any, Callable, Optional

Wait = Callable[[], int]
Reduce = Callable[[int], Wait]


class Agreement:
    """Call `step` once a step on every rank. reduce: starts a maximum over all ranks, returns its wait."""

    def __init__(self, reduce: Reduce, every: int) -> None:
        if every < 1:
            raise ValueError("every: expected at least 1 step, got %r" % (every,))
        self._reduce, self._every = reduce, every
        self._calls = 0
        self._pending: Optional[Wait] = None
        self.done = 0

    def step(self, seen: int) -> bool:
        """Tell how many requests this rank has seen; True when all ranks act on a new one now.

        Raises what the reduction raises when a peer is gone.
        """
        self._calls += 1
        if self._calls % self._every:
            return False
        agreed = self._pending() if self._pending is not None else self.done
        self._pending = self._reduce(seen)
        if agreed <= self.done:
            return False
        self.done = agreed
        return True


class Peers:
    """The ranks of this job, for agreeing and for telling one another how a save went: a gloo group."""

    def __init__(self, timeout_s: float) -> None:
        self.rank, self.size = 0, 1
        self._group: Any = None
        self._distributed: Any = None
        torch, distributed = _torch()
        if distributed is not None and distributed.is_initialized():
            self._torch, self._distributed = torch, distributed
            self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
            self._group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def reduce(self, seen: int) -> Wait:
        """Start a maximum over all ranks."""
        if self._group is None:
            return lambda: seen
        tensor = self._torch.tensor([seen], dtype=self._torch.int64)
        work = self._distributed.all_reduce(
            tensor, op=self._distributed.ReduceOp.MAX, group=self._group, async_op=True
        )

        def wait() -> int:
            work.wait()
            return int(tensor[0])

        return wait

    def gather(self, value: Any) -> Any:
        """Return every rank's value, in the ranks' order. Raises RuntimeError when one does not come."""
        if self._group is None:
            return [value]
        found = [None] * self.size
        self._distributed.all_gather_object(found, value, group=self._group)
        return found


def _torch() -> Any:
    """Return torch and torch.distributed where the job has loaded them, else None twice."""
    torch = sys.modules.get("torch")
    distributed = sys.modules.get("torch.distributed")
    if torch is None or distributed is None or not distributed.is_available():
        return None, None
    return torch, distributed
