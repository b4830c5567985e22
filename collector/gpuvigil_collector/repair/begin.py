"""`gpuvigil start`: an operator has the agents start a job that runs nowhere.

Called in a thread of the web server, because it waits for agents; the brain is asked first whether anything
forbids it, and writes into the journal who asked and what came of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, Protocol

from gpuvigil_collector.action import AmbiguousError, Fence, RefusedError
from gpuvigil_collector.repair import words
from gpuvigil_collector.repair.words import UnheardError

_BRAIN_S: Final = 10.0


class Begins(Protocol):
    """Starts a job through the agents (execute.Executor)."""

    def begin_job(self, job: str, node: str, action: str, fence: Fence, avoid: frozenset[str]) -> str:
        """Start it; node "": the best that can take it. Raises RefusedError, AmbiguousError."""
        ...


class JobStart:
    """Call it with (job, node or "", who asks). ask: RepairDesk.ask."""

    def __init__(
        self,
        executor: Begins,
        ask: Callable[[words.Word], Future[Any]],
        fence: Callable[[], Fence | None],
    ) -> None:
        self._executor, self._ask, self._fence = executor, ask, fence

    def __call__(self, job: str, node: str, by: str) -> dict[str, Any]:
        """Start the job and say where. Raises UnheardError with the reason, TimeoutError without a tick."""
        avoid = self._ask(words.may_start(job, node, by)).result(_BRAIN_S)["avoid"]
        fence = self._fence()
        if fence is None:
            raise UnheardError(
                "lease",
                "this collector to hold it",
                "the lease is not ours: another acts, or it is new (30 s)",
            )
        action = f"start-{secrets.token_hex(6)}"
        try:
            said = self._executor.begin_job(job, node, action, fence, frozenset(avoid))
        except RefusedError as refused:
            self._tell(by, f"{job}: refused: {refused}")
            raise UnheardError("job", "one that runs nowhere, and a node for it", str(refused)) from None
        except AmbiguousError as lost:
            self._tell(by, f"{job}: not known: {lost}")
            raise UnheardError("agent", "an answer", f"{lost}; look before it is asked again") from None
        self._tell(by, f"{job}: {said}")
        return {"job": job, "action": action, "outcome": said}

    def _tell(self, by: str, what: str) -> None:
        self._ask(words.told(by, "start_ended", what)).result(_BRAIN_S)
