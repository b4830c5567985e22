"""What an actuator keeps up between actions is kept up under the lease alone, and its bug stops nobody."""

from __future__ import annotations

from typing import Any

import pytest

from gpuvigil_collector.action import Fence
from gpuvigil_collector.attempt import Attempt

FENCE = Fence(holder="c1", generation=3, until_ns=1 << 62)


class Keeps:
    name = "keeps"

    def __init__(self, error: Exception | None = None) -> None:
        self.seen: list[Fence] = []
        self.error = error

    def tend(self, fence: Fence) -> None:
        self.seen.append(fence)
        if self.error is not None:
            raise self.error


class Lease:
    def __init__(self, fence: Fence | None) -> None:
        self._fence = fence

    def fence(self) -> Fence | None:
        return self._fence


@pytest.mark.parametrize("fence", [FENCE, None])
def test_r2_nothing_is_kept_up_without_the_lease(fence: Fence | None) -> None:
    lease: Any = Lease(fence)
    store: Any = None
    keeps = Keeps()
    Attempt(store=store, lease=lease, paused=lambda: "").tend(keeps)
    assert keeps.seen == ([FENCE] if fence else [])


def test_a_bug_of_it_is_a_fault_that_people_see() -> None:
    lease: Any = Lease(FENCE)
    store: Any = None
    attempt = Attempt(store=store, lease=lease, paused=lambda: "")
    attempt.tend(Keeps(error=ZeroDivisionError("x")))
    assert attempt.faults == ["keeps failed: ZeroDivisionError"]
