"""Calls to agents: a command down a node's live stream, and its answer, for whoever can wait for it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from typing import Final

from gpuvigil_collector.action import AmbiguousError, Answer
from gpuvigil_collector.ingest import frames

_WAITING_MAX: Final = 1000
_SECOND_NS: Final = 1_000_000_000


class AgentCalls:
    """action.AgentCall. Any thread may call; the brain hands the answers in with `take`."""

    def __init__(self, send: Callable[[frames.Command], None]) -> None:
        self._send = send
        self._waiting: dict[str, tuple[str, Future[Answer]]] = {}
        self._lock = threading.Lock()

    def __call__(self, node: str, verb: str, arguments: Mapping[str, str], deadline_s: float) -> Answer:
        """Send one command and wait for what the agent made of it.

        Raises AmbiguousError when no answer came: the command may have been carried out.
        """
        identity, future = secrets.token_hex(8), Future[Answer]()
        with self._lock:
            if len(self._waiting) >= _WAITING_MAX:
                raise AmbiguousError(f"{node}: {_WAITING_MAX} commands already wait for their agents")
            self._waiting[identity] = (node, future)
        deadline_ns = time.time_ns() + int(deadline_s * _SECOND_NS)
        try:
            self._send(frames.Command(node, identity, verb, dict(arguments), deadline_ns))
            return future.result(timeout=deadline_s)
        except LateError:
            raise AmbiguousError(f"{node}: no answer to {verb} within {deadline_s:g} s") from None
        finally:
            with self._lock:
                del self._waiting[identity]

    def take(self, results: Iterable[frames.Result]) -> list[frames.Result]:
        """Hand answers to those who wait; return the results that are somebody else's."""
        others = []
        for result in results:
            with self._lock:
                node, future = self._waiting.get(result.id, ("", None))
            if future is None:
                others.append(result)
            elif node == result.node and not future.done():
                future.set_result(Answer(accepted=result.accepted, outcome=result.outcome))
        return others
