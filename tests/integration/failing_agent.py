"""An agent that kills itself at a named point of its delivery path, or forgets a row: what tests start.

The product has neither switch: this script wraps the methods that the points are named after, then runs the
agent's own `main`. usage: failing_agent.py kill POINT HITS MARKER -- AGENT ARGUMENTS, or forget - HITS ...
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpuvigil_agent import __main__ as agent
from gpuvigil_agent.call import Call
from gpuvigil_agent.spool_memory import Memory
from gpuvigil_agent.spool_store import Store

SCRIPT = Path(__file__).resolve()
# point -> (class, method, at its start instead of at its end)
POINTS: dict[str, tuple[type, str, bool]] = {
    "row_in_memory_only": (Memory, "put", False),
    "before_spool_commit": (Store, "commit", True),
    "after_spool_commit": (Store, "commit", False),
    "after_stream_write": (Call, "write", False),
    "watermark_not_yet_applied": (Memory, "ack", False),
    "durable_rows_deleted_uncommitted": (Store, "delete_durable", False),
}


class Countdown:
    """Tells once, at the `hits`-th call, that it is time; the marker remembers it over restarts."""

    def __init__(self, hits: int, marker: Path) -> None:
        self.left, self.marker = hits, marker

    def due(self, what: str) -> bool:
        if self.marker.exists():
            return False
        self.left -= 1
        if self.left <= 0:
            self.marker.write_text(what)
        return self.left <= 0


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(point: str, countdown: Countdown) -> None:
    """Put the end of this process at one point."""
    owner, name, at_start = POINTS[point]
    method = getattr(owner, name)

    def reached() -> None:
        if countdown.due(point):
            _die()

    setattr(owner, name, _wrapped(method, reached, at_start))


def _wrapped(method: Callable[..., Any], reached: Callable[[], None], at_start: bool) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def later(*arguments: Any) -> Any:
            answer = await method(*arguments)
            reached()
            return answer

        return later

    @functools.wraps(method)
    def now(*arguments: Any) -> Any:
        if at_start:
            reached()
        answer = method(*arguments)
        if not at_start:
            reached()
        return answer

    return now


def forget_a_row(countdown: Countdown) -> None:
    """The mutant: another row's payload goes under a sequence that was used, as a wrong restart would do."""
    put = Memory.put

    def wrong(memory: Memory, row: Any) -> None:
        put(memory, row)
        if countdown.due("forget"):
            with memory.wake:
                memory.following[row.number] -= 1

    Memory.put = wrong  # type: ignore[method-assign]


def main(argv: list[str]) -> int:
    """Arm what was asked for, then be the agent."""
    mode, point, hits, marker, _, *rest = argv
    countdown = Countdown(int(hits), Path(marker))
    if mode == "kill":
        kill_at(point, countdown)
    else:
        forget_a_row(countdown)
    return agent.main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
